"""The nodes that route: scores, the best of them, and the weight of every expert for every row, zero if not taken."""

from __future__ import annotations

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


def gates(
    write: Writer, rows: ir.Value, parts: Parts, mixture: Mixture, values: tuple[float, float] = (0, 1)
) -> ir.Value:
    """Write the weights `[experts, rows]`, in single precision: zero for an expert that a row does not take.

    `values` are what an expert counts that is not taken, and one that is; its weight is times that.
    """
    scores = scored(write, rows, parts, mixture)
    if mixture.threshold is not None:
        scores = write("Softmax", scores, dtype=FLOAT, axis=-1)
    best, chosen = write.several("TopK", [scores, write.integers("active", mixture.active)], [FLOAT, INT], axis=-1)
    depth, pair = write.integers("experts", mixture.experts), write.constant("values", np.array(values, np.float32))
    taken = write("OneHot", chosen, depth, pair, dtype=FLOAT, axis=0)
    weights = _weights(write, best, mixture)
    if weights is not None:
        taken = write("Mul", taken, weights, dtype=FLOAT)
    return write("ReduceSum", taken, write.integers("slots", 2), dtype=FLOAT, keepdims=0)


def _weights(write: Writer, best: ir.Value, mixture: Mixture) -> ir.Value | None:
    """Write what the experts that a row may take count, `[rows, active]`; None where all count one."""
    if mixture.threshold is None:
        if not mixture.soft:
            return None
        share = write("Softmax", best, dtype=FLOAT, axis=-1)
        return write("Mul", share, write.constant("active.count", np.array(mixture.active, np.float32)), dtype=FLOAT)
    axis = write.integers("last", 1)
    before = write("CumSum", best, write.constant("along", np.array(1)), dtype=FLOAT, exclusive=1)
    limit = write.constant("threshold", np.array(mixture.threshold, np.float32))
    below = write("Less", before, limit, dtype=ir.DataType.BOOL)
    inside = write("Cast", below, dtype=FLOAT, to=FLOAT.value)
    if not mixture.soft:
        return inside
    shares = write("Mul", best, inside, dtype=FLOAT)
    total = write("ReduceSum", shares, axis, dtype=FLOAT, keepdims=1)
    count = write("ReduceSum", inside, axis, dtype=FLOAT, keepdims=1)
    return write("Mul", shares, write("Div", count, total, dtype=FLOAT), dtype=FLOAT)


def decide(parts: Parts, mixture: Mixture, rows: Array, runtime: Runtime) -> Array:
    """Return what each routed expert counts for each row, `[rows, experts]`, as the emitted nodes decide it."""
    layer = parts.layer
    given = ir.Value(name="rows", type=ir.TensorType(dtype_of(layer)), shape=ir.Shape([None, layer.channels[0]]))
    graph = ir.Graph([given], [], nodes=[], opset_imports=parts.model.graph.opset_imports, name="router")
    model = ir.Model(graph, ir_version=parts.model.ir_version)
    write = Writer(graph, None, "router", Names(model), dtype_of(layer))
    found = gates(write, given, parts, mixture)
    graph.outputs.append(found)
    with runtime.open(model) as runs:
        return np.asarray(runs.run({"rows": rows})[found.name or ""]).T
