"""Which groups a pass works on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from bevel.ir.axes import Axis, Dim, Product, atoms, resolve
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group

MOST_REASONS = 5


def choose(groups: Sequence[Group], kind: Freedom, only: Sequence[str], skip: Sequence[str]) -> list[Group]:
    """Return the groups that allow an edit and are asked for; patterns match the name of the group or of a member."""
    return [
        group
        for group in groups
        if group.allows(kind) and (not only or _matches(group, only)) and not _matches(group, skip)
    ]


def _matches(group: Group, patterns: Sequence[str]) -> bool:
    names = {group.name, *(member.value.name or "" for member in group.members)}
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


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
    for group in analysis.groups:
        for member in group.members:
            axes = analysis.axes(member.value)
            assert axes is not None
            for factors in _products(axes[member.axis]):
                inside = [set(atoms(factor)) for factor in factors]
                for depth, dims in enumerate(inside):
                    others = set().union(*inside[:depth], *inside[depth + 1 :])
                    for dim in dims:
                        depths[dim] = max(depths.get(dim, 0), depth)
                        partners.setdefault(dim, set()).update(others)
    return depths, partners


def _products(axis: Axis) -> Iterator[tuple[Axis, ...]]:
    """Yield the factors of each term of an axis."""
    axis = resolve(axis)
    if isinstance(axis, Product):
        yield axis.factors
    elif not isinstance(axis, Dim):
        for term in axis.terms:
            yield from _products(term)


def left_out(groups: Sequence[Group], kind: Freedom) -> list[str]:
    """Say why groups do not allow an edit, the commonest reasons first."""
    blocked = Counter(group.why(kind)[0] for group in groups if not group.allows(kind))
    lines = [f"left alone: {reason}{_times(count)}" for reason, count in blocked.most_common(MOST_REASONS)]
    rest = len(blocked) - MOST_REASONS
    return [*lines, f"{rest} more reasons: `bevel inspect` lists them"] if rest > 0 else lines


def _times(count: int) -> str:
    return f" ({count} groups)" if count > 1 else ""
