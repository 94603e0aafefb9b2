"""The ranges of activations over calibration inputs, gathered while ONNX Runtime runs them once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import CalibrationError
from bevel.ir.names import Names
from bevel.passes.activations.grids import Range
from bevel.passes.activations.histogram import Histogram, Method, chooser
from bevel.passes.base import Runs, Runtime
from bevel.passes.calibration import Feed

Array = np.ndarray[Any, Any]

LOWEST, HIGHEST = "ReduceMin", "ReduceMax"


def ranges(
    model: ir.Model, wanted: Sequence[str], feeds: Iterable[Feed], runtime: Runtime, method: Method, share: float
) -> dict[str, Range]:
    """Return the range of each value, by name, over the feeds.

    `minmax` takes the extremes, which the runtime computes itself; the others choose among the values that a histogram
    counts. Memory is that of one feed. Raises `CalibrationError` where a value is not finite, or there are no feeds.
    """
    if not wanted:
        return {}
    if method == "minmax":
        return _extremes(model, wanted, feeds, runtime)
    choose = chooser(method, share)
    return {name: choose(histogram) for name, histogram in histograms(model, wanted, feeds, runtime).items()}


def histograms(model: ir.Model, wanted: Sequence[str], feeds: Iterable[Feed], runtime: Runtime) -> dict[str, Histogram]:
    """Return how the values of activations are distributed."""
    found = {name: Histogram() for name in wanted}
    with _probing(model, wanted, runtime) as runs:
        for feed in _some(feeds):
            answers = runs.run(feed)
            for name, histogram in found.items():
                array = answers[name] if name in answers else np.asarray(feed[name])
                _check(name, float(array.min(initial=0)), float(array.max(initial=0)))
                histogram.add(array)
    return found


@contextmanager
def _probing(model: ir.Model, wanted: Sequence[str], runtime: Runtime) -> Iterator[Runs]:
    """Open a clone that gives values out beside its outputs."""
    probe = model.clone()
    values = by_name(probe)
    given = set(probe.graph.outputs)
    probe.graph.outputs.extend(
        value for name in wanted if (value := values[name]) not in given and not value.is_graph_input()
    )
    with runtime.open(probe) as runs:
        yield runs


def _extremes(model: ir.Model, wanted: Sequence[str], feeds: Iterable[Feed], runtime: Runtime) -> dict[str, Range]:
    probe = model.clone()
    names, values, ends = Names(probe), by_name(probe), dict[str, tuple[str, str]]()
    probe.graph.outputs.clear()
    for name in wanted:
        low, high = (reduced(probe, operator, values[name], names) for operator in (LOWEST, HIGHEST))
        ends[name] = low.name or "", high.name or ""
        probe.graph.outputs.extend((low, high))
    found: dict[str, Range] = {}
    with runtime.open(probe) as runs:
        for feed in _some(feeds):
            answers = runs.run(feed)
            for name, pair in ends.items():
                least, most = (float(answers[end]) for end in pair)
                _check(name, least, most)
                before = found.get(name, (least, most))
                found[name] = min(least, before[0]), max(most, before[1])
    return found


def reduced(model: ir.Model, operator: str, value: ir.Value, names: Names) -> ir.Value:
    """Return one number of a value, computed right behind it."""
    node = ir.node(operator, [value], {"keepdims": 0}, name=names.free(f"{value.name}.{operator}"))
    output, maker = node.outputs[0], value.producer()
    output.name, output.type, output.shape = node.name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    if maker is not None:
        model.graph.insert_after(maker, node)
    else:
        model.graph.insert_before(model.graph[0], node)
    return output


def by_name(model: ir.Model) -> Mapping[str, ir.Value]:
    """Return the values of the main graph, without its weights."""
    made = (value for node in model.graph for value in node.outputs)
    return {value.name or "": value for value in (*model.graph.inputs, *made)}


def _some(feeds: Iterable[Feed]) -> Iterator[Feed]:
    """Yield feeds, of which there must be some."""
    empty = True
    for feed in feeds:
        empty = False
        yield feed
    if empty:
        raise CalibrationError("there are no inputs to take ranges from", remedy="give some with --calibration")


def _check(name: str, low: float, high: float) -> None:
    if not np.isfinite(low) or not np.isfinite(high):
        raise CalibrationError(
            "is not finite on the calibration inputs", where=f"value {name!r}", remedy="skip the layers that read it"
        )
