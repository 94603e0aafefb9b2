"""Mean and variance of what nodes read, channel by channel, from one run of the model over the calibration inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import CalibrationError
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.base import Context
from bevel.passes.fitting.normalization import MEAN, VARIANCE, align, is_normalization, parameter
from bevel.passes.fitting.walk import Walk
from bevel.passes.importance.consumers import Reading

AXES_ARE_AN_INPUT = 18  # of reductions, from this opset on


@dataclass(frozen=True)
class Channels:
    """Mean and variance of the channels of an activation, each over `count` places."""

    count: int
    mean: np.ndarray
    variance: np.ndarray

    @property
    def energy(self) -> np.ndarray:
        """The mean square."""
        energy: np.ndarray = self.variance + np.square(self.mean)
        return energy

    def joined(self, other: "Channels") -> "Channels":
        """Put the places of two samples together, without the cancellation of `E[x^2] - E[x]^2`."""
        count = self.count + other.count
        share, gap = other.count / max(count, 1), other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * np.square(gap)
        return Channels(count, self.mean + share * gap, variance)


def measure(model: ir.Model, readings: Sequence[Reading], context: Context) -> dict[Reading, Channels]:
    """Return the statistics of the activations that can be read: those of the main graph whose rank is known.

    On made-up inputs, normalizations go by the statistics of these (`align` in `bevel.passes.fitting.normalization`).
    Raises `CalibrationError` where there are no inputs.
    """
    readable = [reading for reading in dict.fromkeys(readings) if _readable(reading.value, model)]
    if not readable:
        return {}
    found: dict[Reading, Channels] = {}
    measuring = _Measuring(model, readable, _aligned(model, context))
    with context.runtime.open(measuring.model) as runs:
        for done, feed in enumerate(context.calibration.samples(context.samples)):
            context.progress("statistics", done, done + 1)
            for reading, seen in measuring.read(runs.run(feed)):
                found[reading] = found[reading].joined(seen) if reading in found else seen
    if not found:
        raise CalibrationError("there is no input to take statistics of", where=context.calibration.source)
    return found


def _aligned(model: ir.Model, context: Context) -> dict[ir.Value, np.ndarray]:
    """Return what the means and variances of normalizations are on made-up inputs."""
    nodes = [node for node in model.graph if is_normalization(node)] if context.calibration.made_up else []
    if not nodes:
        return {}
    found: dict[ir.Value, np.ndarray] = {}
    walk = Walk(model, context.calibration.samples(context.samples), context.runtime)
    for node in nodes:
        found[parameter(node, MEAN)], found[parameter(node, VARIANCE)] = align(walk, node)
    return found


def _readable(value: ir.Value, model: ir.Model) -> bool:
    producer = value.producer()
    inside = value in model.graph.inputs if producer is None else producer.graph is model.graph
    return inside and value.shape is not None and len(value.shape) > 1


class _Measuring:
    """A copy of a model that gives out statistics instead of its outputs."""

    def __init__(self, model: ir.Model, readings: Sequence[Reading], contents: Mapping[ir.Value, np.ndarray]) -> None:
        self.readings = readings
        self.model = model.clone()
        for value, array in contents.items():
            dtype = (value.dtype or ir.DataType.FLOAT).numpy()
            self.model.graph.initializers[value.name or ""].const_value = ir.tensor(array.astype(dtype))
        self._names = Names(self.model)
        self._version = self.model.opset_imports.get("", 1)
        self.model.graph.outputs.clear()
        twins = _twins(model, self.model)
        # The runtime takes the last leaves of a graph first: so the earliest activations are measured and freed first.
        backwards = [self._statistics(twins[reading.value], reading.position) for reading in reversed(readings)]
        self._answers = backwards[::-1]

    def read(self, answers: Mapping[str, Any]) -> list[tuple[Reading, Channels]]:
        """Return what one run says of each activation."""
        found = []
        for reading, names in zip(self.readings, self._answers, strict=True):
            size, mean, spread = (np.asarray(answers[name], np.float64).ravel() for name in names)
            count = int(size[0]) // max(mean.size, 1)
            if count:
                found.append((reading, Channels(count, mean, spread / count)))
        return found

    def _statistics(self, value: ir.Value, position: int) -> tuple[str, str, str]:
        """Give out the size of a value, the means of its channels, and the sums of their squared deviations."""
        assert value.shape is not None
        axes = [axis for axis in range(len(value.shape)) if axis != position]
        x = self._node("Cast", [value], to=int(ir.DataType.FLOAT))
        mean = self._reduce("ReduceMean", x, axes, keepdims=1)
        spread = self._reduce("ReduceSumSquare", self._node("Sub", [x, mean]), axes, keepdims=0)
        return self._output(self._node("Size", [x]), ir.DataType.INT64), self._output(mean), self._output(spread)

    def _reduce(self, op_type: str, x: ir.Value, axes: list[int], keepdims: int) -> ir.Value:
        if self._version < AXES_ARE_AN_INPUT:
            return self._node(op_type, [x], axes=axes, keepdims=keepdims)
        constant = add_initializer(
            self.model.graph, "statistics.axes", ir.tensor(np.asarray(axes, np.int64)), self._names
        )
        return self._node(op_type, [x, constant], keepdims=keepdims)

    def _node(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].name = node.name = self._names.free("statistics")
        self.model.graph.append(node)
        return node.outputs[0]

    def _output(self, value: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> str:
        value.type = ir.TensorType(dtype)
        self.model.graph.outputs.append(value)
        assert value.name is not None
        return value.name


def _twins(model: ir.Model, copy: ir.Model) -> dict[ir.Value, ir.Value]:
    """Return the values of a model's main graph beside those of a copy."""
    twins = dict(zip(model.graph.inputs, copy.graph.inputs, strict=True))
    for node, twin in zip(model.graph, copy.graph, strict=True):
        twins.update(zip(node.outputs, twin.outputs, strict=True))
    return twins
