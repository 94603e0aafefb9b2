"""Which attributes of a user's own modules state sizes that changed, and what they become.

There are three clues: the attribute's value was the size of an axis, of one of its factors or of
a term; the tensors that have it lie in the module or below it, the nearer the likelier; its name says what it counts.
Where the clues leave several answers, they are listed by likelihood, and the outputs decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from torch import nn

from bevel.backends.torch.surgery.journal import Journal
from bevel.backends.torch.surgery.layers import Planned
from bevel.ir.change import Pair, Role
from bevel.ir.plan_file import PlannedTensor
from bevel.ir.record import Cut

SIZES: Final = re.compile(
    r"heads?|dims?|sizes?|width|channels?|features?|planes|hidden|embed|embd|d_model|d_ff|d_inner|d_kv|units|filters|"
    r"inner|ffn|intermediate|groups|experts|split|shape|parts|rank|nhead"
)
"""Parts of names that state sizes."""

OTHERS: Final = re.compile(
    r"layers?|depth|blocks?|kernel|stride|pad|dilation|position|patch|image|window|batch|chunk|len|idx|index|token|label"
    r"|class|stages?|eps|drop|version|max_"
)
"""Parts of names that count something else, whatever the rest says."""

INNER: Final = re.compile(r"all_head|inner|split|intermediate|ffn|mlp|d_ff|qkv|expand|parts")
# The roles a size may have in an axis, the likeliest first, by what the name says.
OF_HEADS: Final[tuple[Role, ...]] = ("count", "middle", "each", "whole")
OF_ONE_HEAD: Final[tuple[Role, ...]] = ("each", "middle", "count", "whole")
OF_ALL: Final[tuple[Role, ...]] = ("whole", "each", "count", "middle")


class Evidence(NamedTuple):
    """A size before and after, its role in its axis, and how far below the module its tensor lies."""

    before: int
    after: int
    role: Role
    depth: int


@dataclass(frozen=True)
class Choice:
    """An attribute that may follow: its possible values, the likeliest first, one of them what it is now."""

    owner: Any
    name: str
    place: str
    options: tuple[Any, ...]

    @property
    def key(self) -> tuple[type, str]:
        """What modules of one class have in common: they decide alike."""
        return type(self.owner), self.name


def choices(modules: Mapping[str, nn.Module], planned: Planned, shapes: Mapping[str, Sequence[int]]) -> list[Choice]:
    """Return what may follow in modules of which the table knows nothing, and in the configurations they share."""
    pairs = {name: _tensor_pairs(shape, planned.get(name)) for name, shape in shapes.items()}
    found: list[Choice] = []
    configurations: dict[int, tuple[Any, list[list[Choice]]]] = {}
    for place, module in modules.items():
        evidence = _evidence(place, pairs)
        if all(each.before == each.after for each in evidence):
            continue
        found.extend(_of(module, place, vars(module), evidence))
        config = vars(module).get("config")
        if hasattr(config, "__dict__"):
            holders = configurations.setdefault(id(config), (config, []))[1]
            holders.append(list(_of(config, f"{place}.config".lstrip("."), vars(config), evidence)))
    for config, holders in configurations.values():
        found.extend(_agreed(config, holders))
    return found


def own_configurations(root: nn.Module, found: Sequence[Choice], journal: Journal) -> list[Choice]:
    """Give the module copies of the configurations that are to change: the caller may make other modules of them."""
    copies: dict[int, Any] = {}
    result: list[Choice] = []
    for choice in found:
        if isinstance(choice.owner, nn.Module):
            result.append(choice)
            continue
        if id(choice.owner) not in copies:
            copies[id(choice.owner)] = copy(choice.owner)
            for part in root.modules():
                if vars(part).get("config") is choice.owner:
                    journal.set(part, "config", copies[id(choice.owner)])
        result.append(replace(choice, owner=copies[id(choice.owner)]))
    return result


def _of(owner: Any, place: str, attributes: Mapping[str, Any], evidence: Sequence[Evidence]) -> Iterator[Choice]:
    for name, value in list(attributes.items()):
        options = _options(name, value, evidence)
        if len(options) > 1 and not name.startswith("_"):
            yield Choice(owner, name, place, options)


def _agreed(config: Any, holders: Sequence[Sequence[Choice]]) -> Iterator[Choice]:
    """Return what every module that holds a configuration says of it alike; nothing else of it is touched."""
    by_name: dict[str, list[Choice]] = {}
    for choice in (choice for holder in holders for choice in holder):
        by_name.setdefault(choice.name, []).append(choice)
    for name, said in by_name.items():
        if len({choice.options[0] for choice in said}) == 1 and said[0].options[0] != getattr(config, name):
            yield said[0]


def _evidence(place: str, pairs: Mapping[str, Sequence[Pair]]) -> list[Evidence]:
    """Return what every axis below a module says, the axes that did not change included."""
    prefix = f"{place}." if place else ""
    found: dict[Evidence, None] = {}
    for name, sizes in pairs.items():
        if name.startswith(prefix):
            depth = name.count(".", len(prefix))
            found.update(dict.fromkeys(Evidence(*pair, depth) for pair in sizes))
    return list(found)


def _tensor_pairs(shape: Sequence[int], tensor: PlannedTensor | None) -> list[Pair]:
    """Return the sizes in all axes of a tensor, before and after."""
    cuts = tensor.cuts if tensor is not None else {}
    found: dict[Pair, None] = {}
    for axis, size in enumerate(shape):
        found.update(dict.fromkeys(_axis_pairs(cuts[axis]) if axis in cuts else [Pair(size, size, "whole")]))
    return list(found)


def _axis_pairs(cut: Cut) -> list[Pair]:
    """Return the sizes in an axis before the first and after the last of its changes."""
    first, *later = cut.changes
    pairs = list(dict.fromkeys(first.sizes()))
    for change in later:
        steps: dict[int, list[int]] = {}
        for step in change.sizes():
            steps.setdefault(step.before, []).append(step.after)
        pairs = [Pair(p.before, after, p.role) for p in pairs for after in steps.get(p.after, [p.after])]
    return list(dict.fromkeys(pairs))


def _options(name: str, value: Any, evidence: Sequence[Evidence]) -> tuple[Any, ...]:
    """Return the values an attribute may have afterwards; one only if it cannot be a size that changed."""
    if type(value) is int:
        return _ranked(name, value, evidence)
    if isinstance(value, list | tuple) and value and all(type(part) is int for part in value):
        parts = [_ranked(name, part, evidence) for part in value]
        most = max(map(len, parts))
        lists = [[part[min(index, len(part) - 1)] for part in parts] for index in range(most)]
        rebuilt = [tuple(each) if isinstance(value, tuple) else each for each in lists]
        return tuple(_distinct([*rebuilt, value]))
    return (value,)


def _distinct(values: Sequence[Any]) -> Iterator[Any]:
    for index, value in enumerate(values):
        if value not in values[:index]:
            yield value


def _ranked(name: str, value: int, evidence: Sequence[Evidence]) -> tuple[int, ...]:
    if value < 2:
        return (value,)
    states_size = bool(SIZES.search(name.lower())) and not OTHERS.search(name.lower())
    roles, changed_first = _roles(name.lower()), bool(INNER.search(name.lower()))
    found = [each for each in evidence if each.before == value]
    found.sort(key=lambda each: (roles.index(each.role), each.depth, (each.after == value) is changed_first))
    afters = list(dict.fromkeys(each.after for each in found))
    if not states_size:  # it stays, unless the outputs say otherwise
        afters = [value, *(after for after in afters if after != value)]
    return tuple(dict.fromkeys([*afters, value]))


def _roles(name: str) -> tuple[Role, ...]:
    if "head" in name and re.search(r"dim|size|width|d_head", name) and "all" not in name:
        return OF_ONE_HEAD
    if re.search(r"heads?$|groups|nhead", name):
        return OF_HEADS
    return OF_ALL
