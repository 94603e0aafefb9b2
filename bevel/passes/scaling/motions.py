"""Which scales can move: into what layers read, and between layers.

A group's motions are a basis (`bevel.ir.symmetry`): of a chain of a convolution, a depthwise one and another, they may
scale the first and the second against the third. The first against the second is their difference. So two motions that
multiply the same weight are combined, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import Axis, Dim, atoms
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group
from bevel.ir.mixing import mixed
from bevel.ir.strands import Occurrence
from bevel.ir.symmetry import Motion
from bevel.passes.choice import MOST_REASONS
from bevel.passes.fitting.layers import Layer, layers

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer whose input channels move, against its weight; `owners` says which entry each is, -1 for none."""

    layer: Layer
    owners: Array


@dataclass(frozen=True, eq=False)
class Scaling:
    """A motion that multiplies what layers read: by its factors to the power of `power`."""

    group: Group
    motion: Motion
    readings: tuple[Reading, ...]
    power: int

    def factor(self, scale: Array) -> Array:
        """Return the factors that divide what layers read by a scale."""
        return np.asarray(scale ** (-1 / self.power))


def scalings(analysis: Analysis, only: Sequence[str], skip: Sequence[str]) -> list[Scaling]:
    """Return what can scale the inputs of layers, in the order of the graph; for the same inputs the shortest motion.

    Patterns match groups and the tensors that move.
    """
    by_data: dict[ir.Value, list[Layer]] = {}
    for layer in layers(analysis.model):
        by_data.setdefault(layer.data, []).append(layer)
    best: dict[object, Scaling] = {}
    for group, motion in motions(analysis, only, skip):
        found = _scaling(analysis, group, motion, by_data)
        if found is None:
            continue
        key = (group, frozenset(reading.layer.node for reading in found.readings))
        if key not in best or len(motion.exponents) < len(best[key].motion.exponents):
            best[key] = found
    return list(best.values())


def motions(analysis: Analysis, only: Sequence[str], skip: Sequence[str]) -> Iterator[tuple[Group, Motion]]:
    """Yield the scales that can move, one by one and combined in pairs."""
    for group in analysis.groups:
        for motion in [*(basis := group.motions(Freedom.SCALE)), *_combined(basis)]:
            names = {group.name, *(each.value.name or "" for each in motion.initializers)}
            if (not only or _match(names, only)) and not _match(names, skip):
                yield group, motion


def _match(names: set[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


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


def _scaling(analysis: Analysis, group: Group, motion: Motion, by_data: dict[ir.Value, list[Layer]]) -> Scaling | None:
    """Return a motion with the layers that it scales the input of; None if there are none, or they move apart."""
    weights = {each.value: power for each, power in motion.initializers.items()}
    read: dict[ir.Value, list[Occurrence]] = {}
    for each in motion.exponents:
        if each.value in by_data:
            read.setdefault(each.value, []).append(each)
    readings, powers = [], set()
    for data, places in read.items():
        rank = len(analysis.axes(data) or ())
        for layer in by_data[data]:
            along = [each for each in places if each.axis == layer.channel_axis % rank]
            if along and weights.get(layer.weight) == -motion.exponents[along[0]]:
                powers |= {motion.exponents[each] for each in along}
                readings.append(Reading(layer, owners(analysis, along, group.size)))
    return Scaling(group, motion, tuple(readings), powers.pop()) if len(powers) == 1 else None


def owners(analysis: Analysis, places: Sequence[Occurrence], size: int) -> Array:
    """Return which entry of a dimension each place along an axis is, where the dimension stands; -1 elsewhere."""
    axis = along(analysis, places[0])
    found = np.full(axis.size, -1)
    for each in places:
        # What is not multiplied stays 1: entries are counted from 2.
        entries = mixed(np.ones(axis.size), axis, each.path, np.arange(2.0, size + 2)).astype(np.int64) - 2
        found = np.where(entries >= 0, entries, found)
    return found


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
    """Say how many layers read what was scaled, and what keeps the inputs of the others still."""
    everything, done = layers(analysis.model), {layer.node for layer in scaled}
    groups = {group.dim: group for group in analysis.groups}
    reasons: dict[str, list[str]] = {}
    for layer in everything:
        if layer.node not in done:
            reasons.setdefault(_why(analysis, layer, groups), []).append(layer.weight.name or "")
    ordered = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    lines = [f"left alone: {_listed(names)}: {reason}" for reason, names in ordered[:MOST_REASONS]]
    return [f"{len(done)} of {len(everything)} layers read scaled inputs", *lines]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the input of {names[0]}{more}"


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
