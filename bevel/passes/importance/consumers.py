"""Who reads the entries of a group: the nodes that sum over it, what they read, and what they multiply it with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import atoms
from bevel.ir.content import content
from bevel.ir.groups import Analysis, Group
from bevel.passes.fitting.layers import Layer, layers
from bevel.passes.importance.weights import flat, is_float


@dataclass(frozen=True)
class Reading:
    """An axis of an activation that some node sums over."""

    value: ir.Value
    position: int


@dataclass
class Consumer:
    """A node that sums over the dimensions of groups: the activations that it reads, and the weight, if it has one."""

    node: ir.Node
    layer: Layer | None
    readings: list[Reading] = field(default_factory=list)
    weight: tuple[ir.Value, int] | None = None
    groups: list[Group] = field(default_factory=list)

    def columns(self, reduce: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return a number for each channel; `reduce` makes `[channels]` of the weight `[before, channels, after]`."""
        assert self.weight is not None
        value, axis = self.weight
        assert value.const_value is not None
        with content(value.const_value) as array:
            if self.layer is None:
                return reduce(flat(array, axis)).astype(np.float64)
            return _layer_columns(self.layer, array, reduce)


def consumers(analysis: Analysis, groups: Sequence[Group]) -> list[Consumer]:
    """Return the nodes that sum over some of the groups, in the order of the graph."""
    wanted = {group.dim: group for group in groups}
    known = {layer.node: layer for layer in layers(analysis.model)}
    found: dict[tuple[ir.Node, int], Consumer] = {}
    for place in analysis.facts.sums:
        dims = [dim for dim in dict.fromkeys(atoms(place.axis)) if dim in wanted]
        value = place.node.inputs[place.input]
        if not dims or value is None:
            continue
        consumer = found.setdefault((place.node, id(place.axis)), Consumer(place.node, known.get(place.node)))
        consumer.groups = [wanted[dim] for dim in dims]
        if is_float(value):
            consumer.weight = value, place.position
        elif (reading := Reading(value, place.position)) not in consumer.readings:
            consumer.readings.append(reading)
    return list(found.values())


def _layer_columns(layer: Layer, array: np.ndarray, reduce: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Reduce all that a layer multiplies a channel with, taps included."""
    matrices = layer.matrices(array)
    inner = matrices.shape[2] // layer.taps
    channels = (flat(matrix.reshape(-1, inner, layer.taps), 1) for matrix in matrices)
    return np.concatenate([reduce(each) for each in channels]).astype(np.float64)
