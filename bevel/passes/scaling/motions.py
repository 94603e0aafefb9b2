"""Which scales can move: into what layers read, and between layers.

A group's motions are a basis (`bevel.ir.symmetry`): of a chain of a convolution, a depthwise one and another, they may
scale the first and the second against the third. The first against the second is their difference. So two motions that
multiply the same weight are combined, too.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import Axis, Dim, atoms
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group
from bevel.ir.joint import Joint, entries, entries_within, joint, scale_within
from bevel.ir.strands import Occurrence
from bevel.ir.symmetry import Motion
from bevel.ir.transform import Move, move
from bevel.ir.within import hosts
from bevel.passes.choice import MOST_REASONS
from bevel.passes.fitting.layers import Layer, layers
from bevel.passes.patterns import asked

Array = np.ndarray[Any, Any]

# The name of a node within a reason.
_NAME: Final = re.compile(r" '[^']*'")


@dataclass(frozen=True, eq=False)
class Direction:
    """A motion along a group, by factors of its entries; of those of each head by itself where `joint` says how."""

    group: Group
    motion: Motion
    joint: Joint | None = None

    @property
    def size(self) -> int:
        """How many factors there are."""
        return self.group.size if self.joint is None else self.joint.size

    def owners(self, analysis: Analysis, places: Sequence[Occurrence]) -> Array:
        """Return which factor each place along the axis of some occurrences has; -1 for none."""
        found = np.full(along(analysis, places[0]).size, -1)
        for each in places:
            if self.joint is None:
                own = entries(along(analysis, each), each, self.group.size)
            else:
                own = entries_within(analysis, self.joint, each)
            found = np.where(own >= 0, own, found)
        return found

    def readable(self, place: Occurrence) -> bool:
        """Say whether the factors of a place can be told along its axis: that of heads and channels."""
        return self.joint is None or self.joint.beside[place].axis == place.axis

    def carry_out(self, analysis: Analysis, factor: Array) -> None:
        """Multiply every tensor that moves by its power of some factors."""
        if self.joint is None:
            move(analysis, [Move(self.group, self.motion, factor)])
        else:
            scale_within(analysis, self.joint, factor)


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer whose input channels move, against its weight; `owners` says which factor each has, -1 for none."""

    layer: Layer
    owners: Array


@dataclass(frozen=True, eq=False)
class Scaling:
    """A direction in which what layers read is multiplied: by the factors to the power of `power`."""

    direction: Direction
    readings: tuple[Reading, ...]
    power: int

    @property
    def size(self) -> int:
        """How many factors there are."""
        return self.direction.size

    def divide(self, analysis: Analysis, scale: Array) -> None:
        """Divide what the layers read by a scale, and let everything else follow."""
        self.direction.carry_out(analysis, scale ** (-1 / self.power))


def scalings(analysis: Analysis, only: Sequence[str], skip: Sequence[str]) -> list[Scaling]:
    """Return what can scale the inputs of layers, in the order of the graph; for the same inputs the shortest motion.

    Patterns match groups and the tensors that move.
    """
    by_data = readers(analysis.model)
    best: dict[object, Scaling] = {}
    for direction in directions(analysis, only, skip):
        found = scaling(analysis, direction, by_data)
        if found is None:
            continue
        key = (direction.group, frozenset(reading.layer.node for reading in found.readings))
        if key not in best or len(direction.motion.exponents) < len(best[key].direction.motion.exponents):
            best[key] = found
    return list(best.values())


def directions(analysis: Analysis, only: Sequence[str], skip: Sequence[str]) -> list[Direction]:
    """Return what can be scaled, one by one and combined in pairs.

    Channels of heads are scaled head by head where that is allowed, which makes a scale of whole heads superfluous.
    """
    moving = {group: motions for group in analysis.groups if (motions := _motions(group))}
    heads = hosts(analysis, moving)
    found = [
        Direction(group, motion, joint(analysis, group, motion, heads.get(group)))
        for group, motions in moving.items()
        for motion in motions
    ]
    whole = {(each.joint.heads, frozenset(each.joint.beside.values())) for each in found if each.joint is not None}
    return [
        each
        for each in found
        if (each.group, frozenset(each.motion.exponents)) not in whole and _asked(each, only, skip)
    ]


def _asked(each: Direction, only: Sequence[str], skip: Sequence[str]) -> bool:
    names = {each.group.name, *(place.value.name or "" for place in each.motion.initializers)}
    return asked(names, only, skip)


def _motions(group: Group) -> list[Motion]:
    basis = group.motions(Freedom.SCALE)
    return [*basis, *_combined(basis)]


def _combined(basis: Sequence[Motion]) -> Iterator[Motion]:
    """Yield the sum or difference of two motions, such that a weight that both multiply stays as it is."""
    for left, right in combinations(basis, 2):
        shared = left.initializers.keys() & right.initializers.keys()
        for sign in sorted({-left.exponents[each] * right.exponents[each] for each in shared}):
            if abs(sign) == 1:
                yield _sum(left, right, sign)


def _sum(left: Motion, right: Motion, sign: int) -> Motion:
    places = dict.fromkeys([*left.exponents, *right.exponents])
    powers = {each: left.exponents.get(each, 0) + sign * right.exponents.get(each, 0) for each in places}
    return Motion({each: power for each, power in powers.items() if power})


def readers(model: ir.Model) -> Mapping[ir.Value, list[Layer]]:
    """Return the layers by what they read."""
    by_data: dict[ir.Value, list[Layer]] = {}
    for layer in layers(model):
        by_data.setdefault(layer.data, []).append(layer)
    return by_data


def scaling(analysis: Analysis, direction: Direction, by_data: Mapping[ir.Value, list[Layer]]) -> Scaling | None:
    """Return a direction with the layers that it scales the input of; None if there are none, or they move apart."""
    exponents = direction.motion.exponents
    weights = {each.value: power for each, power in direction.motion.initializers.items()}
    read: dict[ir.Value, list[Occurrence]] = {}
    for each in exponents:
        if each.value in by_data and direction.readable(each):
            read.setdefault(each.value, []).append(each)
    readings, powers = [], set()
    for data, places in read.items():
        rank = len(analysis.axes(data) or ())
        for layer in by_data[data]:
            channels = [each for each in places if each.axis == layer.channel_axis % rank]
            if channels and weights.get(layer.weight) == -exponents[channels[0]]:
                powers |= {exponents[each] for each in channels}
                readings.append(Reading(layer, direction.owners(analysis, channels)))
    return Scaling(direction, tuple(readings), powers.pop()) if len(powers) == 1 else None


def along(analysis: Analysis, place: Occurrence) -> Axis:
    """Return the axis that an occurrence stands on."""
    axes = analysis.axes(place.value)
    assert axes is not None
    return axes[place.axis]


def largest_of(values: Array, owned: Array, size: int) -> Array:
    """Return the largest value of those that each entry owns.

    >>> largest_of(np.array([1.0, 5.0, 2.0, 9.0]), np.array([0, 1, 0, -1]), 2).tolist()
    [2.0, 5.0]
    """
    result = np.zeros(size)
    np.maximum.at(result, owned[owned >= 0], values[owned >= 0])
    return result


def mean_of(values: Array, owned: Array, size: int) -> Array:
    """Return the mean of the values that each entry owns.

    >>> mean_of(np.array([1.0, 5.0, 2.0, 9.0]), np.array([0, 1, 0, -1]), 2).tolist()
    [1.5, 5.0]
    """
    places = owned[owned >= 0]
    total = np.bincount(places, values[owned >= 0], size)
    return np.asarray(total / np.maximum(np.bincount(places, minlength=size), 1))


def spread(factor: Array, owned: Array) -> Array:
    """Return the factor of each place along an axis, from those of entries; 1 where there is none.

    >>> spread(np.array([2.0, 3.0]), np.array([1, -1, 0])).tolist()
    [3.0, 1.0, 2.0]
    """
    return np.append(factor, 1.0)[owned]


def left_alone(analysis: Analysis, scaled: Sequence[Layer]) -> list[str]:
    """Say how many layers read what was scaled, and what keeps the inputs of the others still.

    Reasons that differ in the name of the node only are one, with the first node's name.
    """
    everything, done = layers(analysis.model), {layer.node for layer in scaled}
    groups = {group.dim: group for group in analysis.groups}
    found: dict[str, list[tuple[str, str]]] = {}
    for layer in everything:
        if layer.node not in done:
            reason = _why(analysis, layer, groups)
            found.setdefault(_NAME.sub("", reason), []).append((layer.weight.name or "", reason))
    ordered = sorted(found.values(), key=lambda entries: -len(entries))
    lines = [_left([name for name, _ in entries], entries[0][1]) for entries in ordered[:MOST_REASONS]]
    return [f"{len(done)} of {len(everything)} layers read scaled inputs", *lines]


def _left(names: Sequence[str], reason: str) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"left alone: the input of {names[0]}{more}: {reason}"


def _why(analysis: Analysis, layer: Layer, groups: Mapping[Dim, Group]) -> str:
    """Return why nothing scales what a layer reads: the nearest node that stands in the way."""
    axes = analysis.axes(layer.data)
    if axes is None:
        return "its axes are not known"
    found = [groups[dim] for dim in atoms(axes[layer.channel_axis]) if dim in groups]
    reasons = [reason for group in found for reason in group.why(Freedom.SCALE)]
    for node in _around(layer):
        for reason in reasons:
            if reason.startswith(f"{node.op_type} {node.name!r}:"):
                return reason
    return reasons[0] if reasons else _read_otherwise(layer)


def _around(layer: Layer) -> Iterator[ir.Node]:
    """Yield the nodes around what a layer reads, the nearest first."""
    seen, values = {layer.node}, [layer.data]
    for value in values:
        maker = value.producer()
        for node in (*([maker] if maker else []), *(use.node for use in value.uses())):
            if node not in seen:
                seen.add(node)
                values.extend(each for each in (*node.inputs, *node.outputs) if each is not None)
                yield node


def _read_otherwise(layer: Layer) -> str:
    """Name what else reads a layer's input, or what gives it."""
    users = [use.node for use in layer.data.uses() if use.node.op_type != layer.node.op_type]
    node = users[0] if users else layer.data.producer()
    if node is None:
        return "it is an input of the graph"
    return f"{node.op_type} {node.name!r}: no scale passes there that moves this input alone"
