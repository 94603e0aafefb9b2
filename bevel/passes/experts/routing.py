"""The nodes that route: scores, the best of them, and the weight of every expert for every row, zero if not taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.split import Parts
from bevel.passes.base import Runtime
from bevel.passes.experts.mixture import Mixture, dtype_of
from bevel.passes.experts.writing import Writer

Array = np.ndarray[Any, Any]

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64


def scored(write: Writer, rows: ir.Value, parts: Parts, mixture: Mixture) -> ir.Value:
    """Write the scores of the experts, `[rows, experts]`, in single precision."""
    scores = mixture.router.scores(write, rows, parts)
    return scores if write.dtype == FLOAT else write("Cast", scores, dtype=FLOAT, to=FLOAT.value)


@dataclass(frozen=True, eq=False)
class Routes:
    """Which experts each row takes, `[experts, rows]`, ones and zeros, and what they count: the same unless `soft`."""

    taken: ir.Value
    weights: ir.Value


def routes(write: Writer, rows: ir.Value, parts: Parts, mixture: Mixture, one: float = 1.0) -> Routes:
    """Write which experts rows take and with what weight, in single precision; `one` is what an expert taken counts."""
    scores = scored(write, rows, parts, mixture)
    if mixture.threshold is not None:
        scores = write("Softmax", scores, dtype=FLOAT, axis=-1)
    best, chosen = write.several("TopK", [scores, write.integers("active", mixture.active)], [FLOAT, INT], axis=-1)
    depth, pair = write.integers("experts", mixture.experts), write.constant("values", np.array([0, one], np.float32))
    slots = write("OneHot", chosen, depth, pair, dtype=FLOAT, axis=0)
    if mixture.threshold is not None:
        inside = _inside(write, best, mixture.threshold)
        slots, best = (write("Mul", each, inside, dtype=FLOAT) for each in (slots, best))
    taken = _over_slots(write, slots)
    if not mixture.soft:
        return Routes(taken, taken)
    shares = _shares(write, best, mixture, None if mixture.threshold is None else inside)
    return Routes(taken, _over_slots(write, write("Mul", slots, shares, dtype=FLOAT)))


def _over_slots(write: Writer, slots: ir.Value) -> ir.Value:
    """Write the sum over the experts that a row may take: each is another."""
    return write("ReduceSum", slots, write.integers("slots", 2), dtype=FLOAT, keepdims=0)


def _inside(write: Writer, best: ir.Value, threshold: float) -> ir.Value:
    """Write ones for those of the best before which the sum is below the threshold, `[rows, active]`."""
    before = write("CumSum", best, write.constant("along", np.array(1)), dtype=FLOAT, exclusive=1)
    limit = write.constant("threshold", np.array(threshold, np.float32))
    return write("Cast", write("Less", before, limit, dtype=ir.DataType.BOOL), dtype=FLOAT, to=FLOAT.value)


def _shares(write: Writer, best: ir.Value, mixture: Mixture, inside: ir.Value | None) -> ir.Value:
    """Write the softmax over those taken, times their number, `[rows, active]`."""
    if inside is None:
        share = write("Softmax", best, dtype=FLOAT, axis=-1)
        return write("Mul", share, write.constant("active.count", np.array(mixture.active, np.float32)), dtype=FLOAT)
    axis = write.integers("last", 1)
    total, count = (write("ReduceSum", each, axis, dtype=FLOAT, keepdims=1) for each in (best, inside))
    return write("Mul", best, write("Div", count, total, dtype=FLOAT), dtype=FLOAT)


def decide(parts: Parts, mixture: Mixture, rows: Array, runtime: Runtime) -> Array:
    """Return what each routed expert counts for each row, `[rows, experts]`, as the emitted nodes decide."""
    layer = parts.layer
    given = ir.Value(name="rows", type=ir.TensorType(dtype_of(layer)), shape=ir.Shape([None, layer.channels[0]]))
    graph = ir.Graph([given], [], nodes=[], opset_imports=parts.model.graph.opset_imports, name="router")
    model = ir.Model(graph, ir_version=parts.model.ir_version)
    write = Writer(graph, None, "router", Names(model), dtype_of(layer))
    found = routes(write, given, parts, mixture).weights
    graph.outputs.append(found)
    with runtime.open(model) as runs:
        return np.asarray(runs.run({"rows": rows})[found.name or ""]).T
