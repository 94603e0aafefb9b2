"""Each expert a graph of its own that an `If` runs when some row asks for it, on those rows: standard ONNX.

    taken [experts, rows]   one where a row takes an expert, from the router
    places                  the rows that the experts take, one expert after the other: NonZero of that
    If per expert           Gather of its rows, the layer with its entries
    TopK of places          where what the experts give for each row stands: Gather of that, and the sum

The sum would be one node, a ScatterND that adds; ONNX Runtime 1.31 loses terms of it on more than one thread.

In 8 bits, rows are quantized once for all experts, and gathered as codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.bypass import redirect
from bevel.ir.names import Names
from bevel.ir.piece import graft
from bevel.ir.split import Parts
from bevel.passes.activations.dynamic import Products
from bevel.passes.activations.sites import sites
from bevel.passes.activations.weights import weight_codes
from bevel.passes.experts.emission import Body, always, as_it_is, writer
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.routing import FLOAT, INT, routes
from bevel.passes.experts.writing import Writer, loosen
from bevel.passes.fitting.layers import GEMM, MATMUL

BOOL = ir.DataType.BOOL
QUANTIZE: Final = "DynamicQuantizeLinear"


@dataclass(frozen=True, eq=False)
class Reading:
    """What experts read: the rows, and their codes, scale and zero point where products are in 8 bits."""

    rows: ir.Value
    body: Body = as_it_is
    codes: Sequence[ir.Value] = ()


def blocks(parts: Parts, mixture: Mixture, names: Names, *, integers: bool = False) -> None:
    """Run each expert in an `If` of its own, on the rows that choose it; with `integers`, its products in 8 bits."""
    layer, graph, write = parts.layer, parts.model.graph, writer(parts, names)
    rows = write.flattened(layer.input, layer, layer.channels[0])
    found = routes(write, rows, parts, mixture)
    pairs = write("NonZero", found.taken, dtype=INT)
    places = write("Gather", pairs, write.constant("row", np.array(1)), dtype=INT, axis=0)
    branches = zip(*_shares(write, found.taken, places, mixture.experts), strict=True)
    reading = _in_codes(write, rows) if integers else Reading(rows)
    given = [_branch(write, parts, mixture, place, reading, *each) for place, each in enumerate(branches)]
    joined = write("Concat", *given, axis=0)
    joined.shape = ir.Shape([None, layer.channels[1]])
    if mixture.soft:
        joined = write("Mul", joined, _weights(write, found.weights, pairs))
    if mixture.gain != 1.0:
        joined = write("Mul", joined, write.floats("gain", np.array(mixture.gain)))
    each = (
        _by_row(write, places, joined, mixture.active)
        if mixture.threshold is None
        else (_in_slots(write, found.taken, pairs, places, joined, mixture.active))
    )
    each.shape = ir.Shape([None, mixture.active, layer.channels[1]])
    total = write("ReduceSum", each, write.integers("slots", 1), keepdims=0)
    total.shape = ir.Shape([None, layer.channels[1]])
    result = write.restored(total, layer.input, layer, layer.channels[1])
    result = always(write, parts, mixture, result, reading.body)
    result.shape = layer.output.shape
    redirect(graph, layer.output, result, names)


def _shares(write: Writer, taken: ir.Value, places: ir.Value, experts: int) -> tuple[list[ir.Value], list[ir.Value]]:
    """Write which rows each expert takes, and whether it takes any."""
    total = write("ReduceSum", taken, write.integers("rows.axis", 1), dtype=FLOAT, keepdims=0)
    wanted = write("Cast", total, dtype=BOOL, to=BOOL.value)
    if experts == 1:
        return [places], [wanted]
    counts = write("Cast", total, dtype=INT, to=INT.value)
    each = write.integers("ones", *[1] * experts)
    own = write.several("Split", [places, counts], [INT] * experts, axis=0)
    return list(own), list(write.several("Split", [wanted, each], [BOOL] * experts, axis=0))


def _in_codes(write: Writer, rows: ir.Value) -> Reading:
    """Quantize the rows once for all experts."""
    kinds = [ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8]
    return Reading(rows, eight_bits, write.several(QUANTIZE, [rows], kinds))


def _branch(
    write: Writer, parts: Parts, mixture: Mixture, expert: int, reading: Reading, own: ir.Value, asked: ir.Value
) -> ir.Value:
    """Write one expert under its condition; it gives one row for each that takes it, in order."""
    layer = parts.layer
    prefix = f"{write.prefix}.{expert}"
    inside = Writer(_empty(write, prefix), None, prefix, write.names, write.dtype)
    model = reading.body(loosen(parts.expert(mixture.partition.routed[expert], bias=False), layer))
    sources = [*reading.codes] if reading.codes and _reads_codes(model) else [reading.rows]
    first = inside("Gather", sources[0], own, dtype=sources[0].dtype, axis=0)
    given = [inside.shaped(first, layer, layer.channels[0]), *sources[1:]]
    by_name = {value.name or "": source for value, source in zip(model.graph.inputs, given, strict=True)}
    (result,) = graft(model, inside.graph, by_name, f"{prefix}.layer", write.names, None)
    output = inside.flattened(result, layer, layer.channels[1])
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


def _weights(write: Writer, weights: ir.Value, pairs: ir.Value) -> ir.Value:
    """Write the weight of each row that an expert gives, as a column."""
    each = write("GatherND", weights, write("Transpose", pairs, dtype=INT, perm=[1, 0]), dtype=FLOAT)
    column = write("Reshape", each, write.integers("weights.column", -1, 1), dtype=FLOAT)
    return column if write.dtype == FLOAT else write("Cast", column, to=write.dtype.value)


def _by_row(write: Writer, places: ir.Value, joined: ir.Value, active: int) -> ir.Value:
    """Write what the experts give for each row, `[rows, active, channels]`: every row takes as many."""
    count = write("Shape", places, dtype=INT)
    _, order = write.several("TopK", [places, count], [INT, INT], axis=0, largest=0)
    return write("Gather", joined, write("Reshape", order, write.integers("each", -1, active), dtype=INT), axis=0)


def _in_slots(
    write: Writer, taken: ir.Value, pairs: ir.Value, places: ir.Value, joined: ir.Value, active: int
) -> ir.Value:
    """Write what the experts give for each row, `[rows, active, channels]`, zeros where a row takes fewer."""
    before = write("CumSum", taken, write.constant("first", np.array(0)), dtype=FLOAT, exclusive=1)
    slot = write("GatherND", before, write("Transpose", pairs, dtype=INT, perm=[1, 0]), dtype=FLOAT)
    column = write.integers("column", -1, 1)
    parts = places, write("Cast", slot, dtype=INT, to=INT.value)
    index = write("Concat", *(write("Reshape", each, column, dtype=INT) for each in parts), dtype=INT, axis=1)
    sizes = [
        write("Gather", write("Shape", value, dtype=INT), write.integers("axis", 1), dtype=INT, axis=0)
        for value in (taken, joined)
    ]
    shape = write("Concat", sizes[0], write.integers("slots.count", active), sizes[1], dtype=INT, axis=0)
    zeros = write("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, write.dtype.numpy())))
    zeros.shape = ir.Shape([None, active, None])
    return write("ScatterND", zeros, index, joined)


def _reads_codes(model: ir.Model) -> bool:
    """Let an expert in 8 bits read codes, their scale and zero point, if all that it reads it quantizes."""
    (given,) = model.graph.inputs
    users = list(given.uses())
    if len(users) != 1 or users[0].node.op_type != QUANTIZE:
        return False
    node = users[0].node
    model.graph.inputs.clear()
    for output in node.outputs:
        value = ir.Value(name=f"{output.name}.given", type=output.type, shape=output.shape)
        output.replace_all_uses_with(value)
        model.graph.inputs.append(value)
    model.graph.remove(node, safe=True)
    return True


def eight_bits(model: ir.Model) -> ir.Model:
    """Compute an expert's products in 8 bits, what they read quantized at run time."""
    found, left = sites(model, (), (), (MATMUL, GEMM))
    if left or not found:
        raise EditRefused(
            "an expert's products cannot be in 8 bits",
            where=f"emit=dynamic: {next(iter(left.values()), 'it takes products of matrices')}",
            remedy="take emit=blocks",
        )
    Products(model, {site.number: weight_codes(site) for site in found}).write(found)
    return model


dynamic = partial(blocks, integers=True)
