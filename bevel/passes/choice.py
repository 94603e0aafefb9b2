"""Which groups a pass works on.

A pattern is the name of a group or of one of its tensors (`*` and `?` stand for anything), or

    op:Conv         groups with a tensor that a Conv takes
    depth:0-5       groups that begin in one of the first six layers with weights
    depth:75-100%   groups that begin in the last quarter of them
    factor:outer    groups that are the first factor of some axis: heads, of heads * head size
    factor:middle   those between: queries of a key-value group
    factor:inner    the last factor: the head size
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

import onnx_ir as ir

from bevel.errors import UsageError, nearest
from bevel.ir.axes import Axis, Dim, Product, atoms, resolve
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group
from bevel.passes.fitting.layers import Layer, layers
from bevel.passes.patterns import asked

MOST_REASONS: Final = 8
OPERATOR: Final = "op:"
DEPTH: Final = "depth:"
FACTOR: Final = "factor:"
OUTER, MIDDLE, INNER = "outer", "middle", "inner"
_DEPTHS: Final = re.compile(r"(?P<first>\d+)(-(?P<last>\d+))?(?P<share>%?)")


def choose(analysis: Analysis, kind: Freedom, only: Sequence[str], skip: Sequence[str]) -> list[Group]:
    """Return the groups that allow an edit, match one of `only`, if there are any, and none of `skip`.

    Raises `UsageError` for a depth that is none, and where `only` matches nothing.
    """
    wanted, spared = _Patterns(analysis, only), _Patterns(analysis, skip)
    asked = [group for group in analysis.groups if not only or wanted.match(group)]
    if only and not asked:
        raise UsageError(
            f"no group matches {','.join(only)}", where="only", remedy="`bevel inspect` lists the groups of a model"
        )
    return [group for group in asked if group.allows(kind) and not (skip and spared.match(group))]


class _Patterns:
    """Patterns, read against one model."""

    def __init__(self, analysis: Analysis, patterns: Sequence[str]) -> None:
        self.names = [text for text in patterns if not text.startswith((OPERATOR, DEPTH, FACTOR))]
        self.operators = [text.removeprefix(OPERATOR) for text in patterns if text.startswith(OPERATOR)]
        self.factors = {_factor(text) for text in patterns if text.startswith(FACTOR)}
        self.roles = _roles(analysis) if self.factors else {}
        depths = [text for text in patterns if text.startswith(DEPTH)]
        weights = [layer.weight for layer in layers(analysis.model)] if depths else []
        self.places = {weight: place for place, weight in reversed(list(enumerate(weights)))}  # tied: the first
        self.depths = [_depths(text, len(weights)) for text in depths]

    def match(self, group: Group) -> bool:
        """Say whether any of the patterns means a group."""
        names = {group.name, *(member.value.name or "" for member in group.members)}
        operators = {node.op_type for member in group.members for node, _ in member.value.uses()}
        return (
            any(name == pattern or fnmatchcase(name, pattern) for name in names for pattern in self.names)
            or any(fnmatchcase(operator, pattern) for operator in operators for pattern in self.operators)
            or any(self._begin(group) in depths for depths in self.depths)
            or not self.factors.isdisjoint(self.roles.get(group.dim, ()))
        )

    def _begin(self, group: Group) -> int:
        """Return in which layer a group begins; -1 if it has no layer's weights."""
        values = [member.value for member in group.members]
        return min((self.places[value] for value in values if value in self.places), default=-1)


def _depths(text: str, count: int) -> range:
    """Read a range of layers, both ends included, or of per cents of them.

    >>> _depths("depth:2-5", 40), _depths("depth:3", 40), _depths("depth:0-50%", 40)
    (range(2, 6), range(3, 4), range(0, 20))
    """
    found = _DEPTHS.fullmatch(text.removeprefix(DEPTH))
    if found is None or (found["share"] and not found["last"]):
        raise UsageError(
            f"{text!r} is no depth", remedy="write depth:0-5 for layers, or depth:0-50% for a share of them"
        )
    first, last = int(found["first"]), int(found["last"] or found["first"])
    return range(first * count // 100, last * count // 100) if found["share"] else range(first, last + 1)


def _factor(text: str) -> str:
    role = text.removeprefix(FACTOR)
    if role not in (OUTER, MIDDLE, INNER):
        raise UsageError(f"{text!r} is no factor", remedy=nearest(role, (OUTER, MIDDLE, INNER)))
    return role


def _roles(analysis: Analysis) -> dict[Dim, set[str]]:
    """Return which factor each dimension is in the products that some tensor's axis is."""
    roles: dict[Dim, set[str]] = {}
    for factors in _all_products(analysis):
        for place, factor in enumerate(factors):
            role = OUTER if place == 0 else INNER if place == len(factors) - 1 else MIDDLE
            for dim in atoms(factor):
                roles.setdefault(dim, set()).add(role)
    return roles


def outermost(analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """Leave out groups that share a product with one that is taken, so that no axis shrinks twice.

    Of the factors of an axis (heads * head size) the outermost is taken: heads rather than parts of heads.
    """
    depths, partners = _factors(analysis)
    taken: set[Dim] = set()
    for group in sorted(groups, key=lambda group: depths.get(group.dim, 0)):
        if taken.isdisjoint(partners.get(group.dim, ())):
            taken.add(group.dim)
    return [group for group in groups if group.dim in taken]


def _factors(analysis: Analysis) -> tuple[dict[Dim, int], dict[Dim, set[Dim]]]:
    """Return how deep in a product each dimension stands at most, and which others it is multiplied with."""
    depths: dict[Dim, int] = {}
    partners: dict[Dim, set[Dim]] = {}
    for factors in _all_products(analysis):
        inside = [set(atoms(factor)) for factor in factors]
        for depth, dims in enumerate(inside):
            others = set().union(*inside[:depth], *inside[depth + 1 :])
            for dim in dims:
                depths[dim] = max(depths.get(dim, 0), depth)
                partners.setdefault(dim, set()).update(others)
    return depths, partners


def _all_products(analysis: Analysis) -> Iterator[tuple[Axis, ...]]:
    """Yield the factors of every product among the axes of initializers, an axis that several share once."""
    places = {(member.value, member.axis) for group in analysis.groups for member in group.members}
    found: dict[Axis, None] = {}
    for value, place in places:
        axes = analysis.axes(value)
        assert axes is not None
        found[axes[place]] = None
    for axis in found:
        yield from _products(axis)


def _products(axis: Axis) -> Iterator[tuple[Axis, ...]]:
    """Yield the factors of each term of an axis."""
    axis = resolve(axis)
    if isinstance(axis, Product):
        yield axis.factors
    elif not isinstance(axis, Dim):
        for term in axis.terms:
            yield from _products(term)


def chosen_layers(model: ir.Model, only: Sequence[str], skip: Sequence[str]) -> tuple[list[Layer], tuple[str, ...]]:
    """Return the layers whose weights may be changed, and why others may not; patterns match weights and nodes."""
    wanted = [layer for layer in layers(model) if asked(layer.names, only, skip)]
    alone = [layer for layer in wanted if len(layer.weight.uses()) == 1 and not layer.weight.is_graph_output()]
    tied = {layer.weight.name for layer in wanted} - {layer.weight.name for layer in alone}
    return alone, (f"left alone: {', '.join(sorted(map(str, tied)))}, used more than once",) if tied else ()


def without(groups: Sequence[Group], taken: Sequence[Group]) -> list[Group]:
    """Return the groups that are not among those taken."""
    out = set(taken)
    return [group for group in groups if group not in out]


def left_out(groups: Sequence[Group], kind: Freedom, others: Mapping[str, Sequence[Group]] | None = None) -> list[str]:
    """Say which groups are left alone and why: those that do not allow an edit, and `others` by reason.

    The reasons that most groups have come first.
    """
    reasons: dict[str, list[Group]] = {}
    for group in groups:
        if not group.allows(kind):
            reasons.setdefault(group.why(kind)[0], []).append(group)
    reasons |= {reason: list(left) for reason, left in (others or {}).items() if left}
    ordered = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    lines = [f"left alone: {_names(left)}: {reason}" for reason, left in ordered[:MOST_REASONS]]
    rest = len(ordered) - MOST_REASONS
    return [*lines, f"{rest} more reasons: `bevel inspect` lists them"] if rest > 0 else lines


def _names(groups: Sequence[Group]) -> str:
    more = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
    return f"{groups[0].name} ({groups[0].size} entries){more}"
