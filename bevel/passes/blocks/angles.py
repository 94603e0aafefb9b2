"""How far a block turns its stream: the angle between what goes in and what comes out, on samples.

    d = mean over tokens (pixels) of arccos(cos(start, end)) / pi

from 0, nothing changed, over 1/2, at right angles, to 1. Blocks that turn little matter little. Source: Gromov et al.
2024, The Unreasonable Ineffectiveness of the Deeper Layers; CFSP shares its budget between blocks by the same distance.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.base import Context

Array = np.ndarray[Any, Any]

# From this opset on, ReduceSum takes its axes as an operand.
AXES_OPERAND: Final = 13


class Stretch(Protocol):
    """A part of a stream: a residual block, a layer of them, or a run of layers."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def start(self) -> ir.Value:
        """The stream before it."""

    @property
    def end(self) -> ir.Value:
        """The stream after it, of the same shape."""

    @property
    def axis(self) -> int:
        """The axis of channels."""


def angles(model: ir.Model, stretches: Sequence[Stretch], context: Context) -> Mapping[str, float]:
    """Return the mean angular distance from start to end of each stretch of `model`'s main graph, by its name.

    The sums over channels are taken in ONNX Runtime, in double precision, over the context's samples.
    """
    probed = model.clone()
    probe = _Probe(probed)
    sums = [probe.sums(stretch) for stretch in stretches]
    probed.graph.outputs.extend(probe.outputs.values())
    totals, counts = np.zeros(len(stretches)), np.zeros(len(stretches))
    with context.runtime.open(probed) as runs:
        for feed in context.calibration.samples(context.samples):
            answer = runs.run(feed)
            found = [angular(*(answer[name] for name in names)) for names in sums]
            totals += [distances.sum() for distances in found]
            counts += [distances.size for distances in found]
    means = totals / np.maximum(counts, 1)
    return {stretch.name: float(mean) for stretch, mean in zip(stretches, means, strict=True)}


def angular(product: Array, left: Array, right: Array) -> Array:
    """Return the angular distances of vectors with these inner products and squared lengths; a zero has none.

    >>> angular(np.array([0.0, 2.0, -1.0]), np.array([1.0, 4.0, 1.0]), np.array([1.0, 1.0, 1.0])).tolist()
    [0.5, 0.0, 1.0]
    """
    lengths = np.sqrt(left * right)
    cosines = np.divide(product, lengths, out=np.ones_like(lengths), where=lengths > 0)
    distances: Array = np.arccos(np.clip(cosines, -1, 1)) / np.pi
    return distances


class _Probe:
    """Nodes added to a model that sum products of its values over their channels."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 1)
        self._names = Names(model)
        self._values = {value.name: value for node in model.graph for value in node.outputs}
        self._values.update({value.name: value for value in model.graph.inputs})
        self._wide: dict[str | None, ir.Value] = {}
        self.outputs: dict[tuple[str | None, str | None, int], ir.Value] = {}

    def sums(self, stretch: Stretch) -> tuple[str, str, str]:
        """Name the outputs with the inner products and squared lengths of a stretch's start and end."""
        start, end = stretch.start.name, stretch.end.name
        return (
            self._sum(start, end, stretch.axis),
            self._sum(start, start, stretch.axis),
            self._sum(end, end, stretch.axis),
        )

    def _sum(self, left: str | None, right: str | None, axis: int) -> str:
        key = (left, right, axis)
        if key not in self.outputs:
            product = self._add("Mul", [self._double(left), self._double(right)])
            self.outputs[key] = self._reduced(product, axis)
        return str(self.outputs[key].name)

    def _double(self, name: str | None) -> ir.Value:
        if name not in self._wide:
            self._wide[name] = self._add("Cast", [self._values[name]], to=ir.DataType.DOUBLE)
        return self._wide[name]

    def _reduced(self, value: ir.Value, axis: int) -> ir.Value:
        if self._opset < AXES_OPERAND:
            reduced = self._add("ReduceSum", [value], axes=[axis], keepdims=0)
        else:
            axes = add_initializer(self._graph, "probe.axes", ir.tensor(np.array([axis])), self._names)
            reduced = self._add("ReduceSum", [value, axes], keepdims=0)
        reduced.type = ir.TensorType(ir.DataType.DOUBLE)
        return reduced

    def _add(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=self._names.free(f"probe.{op_type}"))
        node.outputs[0].name = self._names.free(f"{node.name}.output")
        self._graph.append(node)
        return node.outputs[0]
