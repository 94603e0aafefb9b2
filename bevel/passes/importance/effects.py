"""How much of an error in a layer's output arrives at the outputs of the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import BevelError
from bevel.ir.names import Names
from bevel.ir.signature import signature
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration, Feed
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import visits
from bevel.passes.fitting.shift import can_shift

Array = np.ndarray[Any, Any]

# Samples to measure on: layers are told apart by factors, not by per cent.
SAMPLES: Final = 8
# The error that is made, as a share of the deviation of a layer's output: about that of a layer that loses half of what
# it reads.
SHARE: Final = 0.2
# What counts of the largest effect at least: on a few samples an error may happen to arrive nowhere.
LEAST: Final = 1e-4


def effects(model: ir.Model, layers: Sequence[Layer], context: Context) -> dict[Layer, float]:
    """Return the error of the outputs for each unit of error in a layer's own output, both squared and relative.

    A layer's error is relative to the energy of its output, about the mean where the layer can add a constant; that of
    the outputs to theirs about the mean. It is measured: what is added to a layer's output are the deviations of its
    other channels, which has its size and nothing to do with what it says. One for all where nothing arrives anywhere.
    """
    feeds = list(context.calibration.samples(SAMPLES))
    try:
        return _measured(model, layers, context, [_cut(feed, model) for feed in feeds])
    except BevelError:  # an exporter may call an axis free, and fix it inside
        return _measured(model, layers, context, feeds)


def _measured(model: ir.Model, layers: Sequence[Layer], context: Context, few: Sequence[Feed]) -> dict[Layer, float]:
    """Return the effects of errors on some feeds."""
    on_few = replace(context, calibration=Calibration(lambda: few, "a few samples"), samples=10**9)
    probe, errors = _probe(model, [layer.node for layer in layers])
    found = {}
    with context.runtime.open(probe) as runs:

        def answers(moved: Mapping[str, Array], feed: Feed) -> list[Array]:
            still = {error.name or "": _typed(np.zeros(()), error) for error in errors.values()}
            given = runs.run({**feed, **still, **moved})
            return [np.asarray(array, np.float64) for array in given.values() if _is_float(array)]

        expected = [answers({}, feed) for feed in few]
        for layer, walk in visits(model, layers, on_few):
            error = errors[layer.node]
            outputs = list(walk.ahead(layer.node.outputs[0]))
            added, share = _added(outputs, layer)
            moved = ({error.name or "": _typed(each, error)} for each in added)
            got = [answers(each, feed) for each, feed in zip(moved, few, strict=True)]
            found[layer] = _error(expected, got) / max(share, np.finfo(np.float64).tiny)
    largest = max((each for each in found.values() if np.isfinite(each)), default=0.0) or 1.0
    return {layer: max(each, LEAST * largest) if np.isfinite(each) else largest for layer, each in found.items()}


def _cut(feed: Feed, model: ir.Model) -> Feed:
    """Return the first samples of a feed, if the model leaves open how many it takes; else the feed."""
    inputs = signature(model)
    firsts = {wanted.shape[0] if wanted.shape else None for wanted in inputs}
    if len(firsts) != 1 or not isinstance(firsts.pop(), str) or any(wanted.sequence for wanted in inputs):
        return feed
    return {name: None if array is None else array[:SAMPLES] for name, array in feed.items()}


def _probe(model: ir.Model, nodes: Sequence[ir.Node]) -> tuple[ir.Model, dict[ir.Node, ir.Value]]:
    """Return a clone in which something can be added to what each node gives, and the inputs for that."""
    clone = model.clone()
    names, places = Names(clone), {node: place for place, node in enumerate(model.graph)}
    copies, inputs = list(clone.graph), {}
    for node in nodes:
        copy = copies[places[node]]
        value = copy.outputs[0]
        assert value.dtype is not None
        error = ir.Value(name=names.free(f"{value.name}.error"), type=ir.TensorType(value.dtype))
        moved = ir.node("Add", [value, error], name=names.free(f"{value.name}.moved"))
        clone.graph.inputs.append(error)
        clone.graph.insert_after(copy, moved)
        moved.outputs[0].name, moved.outputs[0].type = moved.name, value.type
        ir.convenience.replace_all_uses_with(value, moved.outputs[0], replace_graph_outputs=True)
        moved.replace_input_with(0, value)
        inputs[node] = error
    return clone, inputs


def _added(outputs: Sequence[Array], layer: Layer) -> tuple[Iterator[Array], float]:
    """Return what to add to a layer's output, feed by feed, and the square of that relative to the output."""
    axis = layer.channel_axis
    rows = [np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis]).astype(np.float64) for each in outputs]
    whole = np.concatenate(rows)
    mean = whole.mean(0)
    spread, energy = np.square(whole - mean).sum(), np.square(whole).sum()
    order = np.random.default_rng(0).permutation(whole.shape[1])
    share = SHARE**2 * (1.0 if can_shift(layer) else float(spread / max(energy, np.finfo(np.float64).tiny)))
    shape = [1] * outputs[0].ndim
    shape[axis] = -1
    added = (SHARE * (each - mean.reshape(shape)).take(order, axis) for each in outputs)
    return added, share


def _error(expected: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> float:
    """Return the squared error of outputs relative to their energy about the mean, added over the outputs."""
    total = 0.0
    for wanted, found in zip(zip(*expected, strict=True), zip(*got, strict=True), strict=True):
        flat = np.concatenate([each.ravel() for each in wanted])
        error = sum(float(np.square(one - other).sum()) for one, other in zip(wanted, found, strict=True))
        total += error / max(float(np.square(flat - flat.mean()).sum()), np.finfo(np.float64).tiny)
    return total


def _typed(array: Array, value: ir.Value) -> Array:
    assert value.dtype is not None
    return array.astype(value.dtype.numpy())


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"
