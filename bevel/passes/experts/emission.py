"""The nodes that run a mixture of experts in the place of a feed-forward layer.

blocks   each expert is a graph of its own that an `If` runs when some row asks for it, on those rows: standard ONNX
masked   everything is computed, and hidden entries of experts that a row did not choose are multiplied by zero

Both route by the same nodes: scores, the best of them, and a mask `[rows, experts]` of ones for those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.bypass import redirect
from bevel.ir.feed_forward import FeedForward
from bevel.ir.names import Names
from bevel.ir.split import Partition, Parts
from bevel.passes.base import Runtime
from bevel.passes.experts.routers import Router
from bevel.passes.experts.writing import Writer, loosen

Array = np.ndarray[Any, Any]

LEAST_OPSET = 13  # where ReduceSum and Split take axes and sizes as inputs
INT, BOOL = ir.DataType.INT64, ir.DataType.BOOL


@dataclass(frozen=True, eq=False)
class Mixture:
    """A feed-forward layer as experts: of those routed, `active` run for each row; what they give is times `gain`."""

    partition: Partition
    router: Router
    active: int
    gain: float = 1.0

    @property
    def experts(self) -> int:
        """How many experts are routed."""
        return len(self.partition.routed)

    def columns(self, size: int) -> tuple[Array, Array]:
        """Return which entries each routed expert has, `[experts, entries]`, times the gain, and which are shared."""
        owners = self.partition.owners(size)
        return self.gain * (owners == np.arange(self.experts)[:, None]), (owners < 0).astype(np.float64)


def require(model: ir.Model) -> None:
    """Raise `EditRefused` where the model's opset is too old to write mixtures in."""
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise EditRefused(
            f"mixtures of experts take operators of opset {LEAST_OPSET}; the model has {opset}",
            remedy="export it with a newer opset, or convert it (onnx.version_converter)",
        )


def _dtype(layer: FeedForward) -> ir.DataType:
    return layer.input.dtype or ir.DataType.FLOAT


def _chosen(write: Writer, rows: ir.Value, parts: Parts, mixture: Mixture) -> tuple[ir.Value, ir.Value]:
    """Write the router: which experts each row takes, `[rows, active]`, and the same as ones, `[rows, experts]`."""
    scores = scored(write, rows, parts, mixture)
    count = write.integers("active", mixture.active)
    _, chosen = write.several("TopK", [scores, count], [ir.DataType.FLOAT, INT], axis=-1)
    depth, values = (
        write.integers("experts", mixture.experts),
        write.constant("mask.values", np.array([0, 1], np.float32)),
    )
    ones = write("OneHot", chosen, depth, values, dtype=ir.DataType.FLOAT, axis=-1)
    return chosen, write("ReduceSum", ones, write.integers("axis", 1), dtype=ir.DataType.FLOAT, keepdims=0)


def scored(write: Writer, rows: ir.Value, parts: Parts, mixture: Mixture) -> ir.Value:
    """Write the scores of the experts, in single precision."""
    scores = mixture.router.scores(write, rows, parts)
    if write.dtype == ir.DataType.FLOAT:
        return scores
    return write("Cast", scores, dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT.value)


def masked(parts: Parts, mixture: Mixture, names: Names) -> None:
    """Multiply the hidden entries of experts that a row does not choose by zero."""
    layer = parts.layer
    write = Writer(parts.model.graph, layer.down, f"{layer.name}.experts", names, _dtype(layer))
    rows = write.flattened(layer.input, layer, layer.channels[0])
    _, mask = _chosen(write, rows, parts, mixture)
    if write.dtype != ir.DataType.FLOAT:
        mask = write("Cast", mask, to=write.dtype.value)
    routed, shared = mixture.columns(layer.size)
    entries = write("MatMul", mask, write.floats("belongs", routed))
    entries = write("Add", entries, write.floats("shared", shared))
    product = write("Mul", layer.hidden, write.restored(entries, layer.input, layer, layer.size))
    product.shape = layer.hidden.shape
    for place, value in enumerate(layer.down.inputs):
        if value is layer.hidden:
            layer.down.replace_input_with(place, product)


def blocks(parts: Parts, mixture: Mixture, names: Names) -> None:
    """Run each expert in an `If` of its own, on the rows that choose it."""
    layer, graph = parts.layer, parts.model.graph
    write = Writer(graph, layer.down, f"{layer.name}.experts", names, _dtype(layer))
    rows = write.flattened(layer.input, layer, layer.channels[0])
    chosen, mask = _chosen(write, rows, parts, mixture)
    by_expert = write("Transpose", mask, dtype=ir.DataType.FLOAT, perm=[1, 0])
    given = [_branch(write, parts, mixture, expert, rows, by_expert, asked) for expert, asked in
             enumerate(_asked(write, by_expert, mixture.experts))]  # fmt: skip
    joined = write("Concat", *given, axis=0)
    joined.shape = ir.Shape([None, layer.channels[1]])
    taken = write("Gather", joined, _places(write, rows, chosen, by_expert), axis=0)
    taken.shape = ir.Shape([None, mixture.active, layer.channels[1]])
    total = write("ReduceSum", taken, write.integers("axis", 1), keepdims=0)
    total.shape = ir.Shape([None, layer.channels[1]])
    if mixture.gain != 1.0:
        total = write("Mul", total, write.floats("gain", np.array(mixture.gain)))
    result = write.restored(total, layer.input, layer, layer.channels[1])
    result = always(write, parts, mixture, result)
    result.shape = layer.output.shape
    redirect(graph, layer.output, result, names)


def _asked(write: Writer, by_expert: ir.Value, experts: int) -> list[ir.Value]:
    """Write whether any row takes each expert."""
    count = write("ReduceSum", by_expert, write.integers("axis", 1), dtype=ir.DataType.FLOAT, keepdims=0)
    wanted = write("Cast", count, dtype=BOOL, to=BOOL.value)
    if experts == 1:
        return [wanted]
    return list(write.several("Split", [wanted, write.integers("ones", *[1] * experts)], [BOOL] * experts, axis=0))


def _branch(
    write: Writer, parts: Parts, mixture: Mixture, expert: int, rows: ir.Value, by_expert: ir.Value, asked: ir.Value
) -> ir.Value:
    """Write one expert under its condition; it gives one row for each that takes it, in order."""
    layer = parts.layer
    prefix = f"{write.prefix}.{expert}"
    inside = Writer(_empty(write, prefix), None, prefix, write.names, write.dtype)
    mine = inside("Gather", by_expert, inside.constant("number", np.array(expert)), dtype=ir.DataType.FLOAT, axis=0)
    places = inside("Reshape", inside("NonZero", mine, dtype=INT), inside.integers("flat", -1), dtype=INT)
    given = inside.shaped(inside("Gather", rows, places, axis=0), layer, layer.channels[0])
    model = loosen(parts.expert(mixture.partition.routed[expert], bias=False), layer)
    output = inside.flattened(inside.graft(model, given, "layer"), layer, layer.channels[1])
    _give(inside, output, layer.channels[1])
    outside = Writer(_empty(write, f"{prefix}.none"), None, f"{prefix}.none", write.names, write.dtype)
    _give(outside, outside("Identity", outside.floats("rows", np.zeros((0, layer.channels[1])))), layer.channels[1])
    result = write("If", asked, then_branch=inside.graph, else_branch=outside.graph)
    result.shape = ir.Shape([None, layer.channels[1]])
    return result


def _empty(write: Writer, name: str) -> ir.Graph:
    return ir.Graph([], [], nodes=[], opset_imports=write.graph.opset_imports, name=name)


def _give(write: Writer, output: ir.Value, width: int) -> None:
    output.type, output.shape = ir.TensorType(write.dtype), ir.Shape([None, width])
    write.graph.outputs.append(output)


def _places(write: Writer, rows: ir.Value, chosen: ir.Value, by_expert: ir.Value) -> ir.Value:
    """Write where, among the rows that the experts give one after the other, those of each row of the layer are."""
    flat = write("Reshape", write("Cast", by_expert, dtype=INT, to=INT.value), write.integers("flat", -1), dtype=INT)
    first = write.constant("first", np.array(0))
    before = write("Sub", write("CumSum", flat, first, dtype=INT), write.constant("one", np.array(1)), dtype=INT)
    size = write("Shape", rows, dtype=INT)
    count = write("Gather", size, write.constant("zero", np.array(0)), dtype=INT, axis=0)
    numbers = write(
        "Range", write.constant("start", np.array(0)), count, write.constant("step", np.array(1)), dtype=INT
    )
    column = write("Reshape", numbers, write.integers("column", -1, 1), dtype=INT)
    index = write("Add", write("Mul", chosen, count, dtype=INT), column, dtype=INT)
    return write("Gather", before, index, dtype=INT, axis=0)


def always(write: Writer, parts: Parts, mixture: Mixture, result: ir.Value) -> ir.Value:
    """Add what does not depend on the router: the shared expert, or at least the constant of the last product."""
    layer = parts.layer
    if len(mixture.partition.shared):
        model = parts.expert(mixture.partition.shared, bias=True)
        return write("Add", result, write.graft(model, layer.input, "shared"))
    if layer.bias is None:
        return result
    bias = layer.down.inputs[layer.bias]
    assert bias is not None
    if layer.axis != layer.rank - 1:
        shape = [1] * layer.rank
        shape[layer.axis] = -1
        bias = write("Reshape", bias, write.integers("bias.shape", *shape))
    return write("Add", result, bias)


def decide(parts: Parts, mixture: Mixture, rows: Array, runtime: Runtime) -> Array:
    """Return which routed experts each row takes, `[rows, experts]`, as the emitted nodes decide it."""
    layer = parts.layer
    given = ir.Value(name="rows", type=ir.TensorType(_dtype(layer)), shape=ir.Shape([None, layer.channels[0]]))
    graph = ir.Graph([given], [], nodes=[], opset_imports=parts.model.graph.opset_imports, name="router")
    model = ir.Model(graph, ir_version=parts.model.ir_version)
    write = Writer(graph, None, "router", Names(model), _dtype(layer))
    _, mask = _chosen(write, given, parts, mixture)
    graph.outputs.append(mask)
    with runtime.open(model) as runs:
        return np.asarray(runs.run({"rows": rows})[mask.name or ""]) > 0
