"""The graph that is trained: layers that add slices, which are trained, to their weights, which are frozen.

It has an operator of ours (`bevel/backends/torch/ops/selected.py`), is made for the module only, and is never saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.provenance import Provenance, provenance, set_provenance
from bevel.ir.resize import add_initializer
from bevel.passes.fitting.layers import GEMM
from bevel.selection.slices import Slice

DOMAIN: Final = "bevel"
SELECTED: Final = "SelectedMatMul"
X, W, ROWS, COLUMNS, BIAS = range(5)
COARSE: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Types of weights whose slices are trained in float32."""


def with_slices(model: ir.Model, slices: Sequence[Slice]) -> tuple[ir.Model, list[str]]:
    """Return a clone whose layers add trained slices, all zero, to their weights, and the names of these.

    `model` is the one that the slices were found in.
    """
    clone = model.clone()
    names = Names(clone)
    twins = dict(zip(model.graph, clone.graph, strict=True))
    added = [_add(twins[part.layer.node], part, names) for part in slices]
    clone.opset_imports[DOMAIN] = 1
    return clone, added


def _add(node: ir.Node, part: Slice, names: Names) -> str:
    """Give a layer one slice; a layer may have one of rows and one of columns."""
    if node.op_type != SELECTED:
        _select(node)
    size = len(part.index)
    shape = (size, len(part.other)) if part.is_read else (len(part.other), size)
    weight = part.layer.weight
    assert isinstance(node.graph, ir.Graph) and weight.dtype is not None
    kind = ir.DataType.FLOAT if weight.dtype in COARSE else weight.dtype
    zeros = ir.tensor(np.zeros(shape, kind.numpy()), dtype=kind)
    value = add_initializer(node.graph, slice_name(part), zeros, names)
    assert value.name is not None
    if provenance(weight) is not None:  # else everything of floats is a parameter
        set_provenance(value, Provenance((value.name,), trainable=True))
    node.replace_input_with(ROWS if part.is_read else COLUMNS, value)
    node.attributes.add(ir.AttrInt64s("row_ranges" if part.is_read else "column_ranges", list(part.ranges)))
    return value.name


def _select(node: ir.Node) -> None:
    """Turn a MatMul or Gemm into our operator, which computes the same as long as it has no slices."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    transposed = node.attributes.get_int("transB", 0) if node.op_type == GEMM else 0
    node.resize_inputs(BIAS + 1)
    node.replace_input_with(2, None)
    node.replace_input_with(BIAS, bias)
    node.attributes.clear()
    node.attributes.add(ir.AttrInt64("transposed", transposed))
    node.domain, node.op_type = DOMAIN, SELECTED


def slice_name(part: Slice) -> str:
    """Return what a slice is called beside its weight: `mlp.down.rows` beside `mlp.down.weight`."""
    stem, dot, _ = part.weight.rpartition(".")
    what = "rows" if part.is_read else "columns"
    return f"{stem}.{what}" if dot else f"{part.weight}_{what}"
