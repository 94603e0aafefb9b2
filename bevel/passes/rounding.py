"""Quantized activations, with their rounding left out: for verification, to tell a flipped rounding from a mistake.

A sum taken in another order moves by some 1e-7 of itself. Where that carries a value over the border between two
quantization steps, it moves by a whole step, and no tolerance for sums holds any more, though nothing is wrong.
"""

from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.constants import known
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.dynamic_rounding import leave_out_dynamic_rounding

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
DOMAINS: Final = ("", "com.microsoft")
PRODUCTS: Final = {"MatMulNBits", "QMoE"}
ACCURACY, EIGHT_BITS = "accuracy_level", 4
EXPERTS_RTOL: Final = 2 * 2 * 0.5 / 127
"""Half a step of 8 bits, in what each of two products takes of a row, and twice that."""
HALVES: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
WITHOUT_ZERO_POINT: Final = ir.DataType.UINT8
"""What QuantizeLinear gives out if nothing says otherwise."""
SIGMOID: Final = "Sigmoid"
CARRIERS: Final = {"Identity", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"}
"""What may stand between a sigmoid and an output."""
RESOLUTION: Final = 2.0**-21
"""Four units in the last place of 1: ONNX Runtime's sigmoid is that far from another way to compute the same."""


def unit(model: ir.Model) -> float:
    """Return the rounding unit of the coarsest type that nodes compute numbers in: of a half precision, if any does."""
    values = (value for graph in model.graphs() for node in graph for value in node.outputs)
    coarse = {value.dtype for value in values if value.dtype in HALVES}
    finfo: Any = ml_dtypes.finfo
    return max((float(finfo(dtype.numpy()).eps) for dtype in coarse if dtype is not None), default=0.0)


def resolutions(model: ir.Model) -> dict[str, float]:
    """Return of outputs that a sigmoid makes which differences mean nothing: its kernel is exact to so much of 1 only.

    A detector that sees nothing gives probabilities of 1e-8 throughout, all of them rounding.
    """
    return {output.name or "": RESOLUTION for output in model.graph.outputs if _is_sigmoid(output)}


def _is_sigmoid(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in CARRIERS and node.domain == "" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == SIGMOID and node.domain == ""


def leave_out_rounding(model: ir.Model) -> int:
    """Replace activations that are quantized and dequantized at once by activations clipped to the same range.

    Only where one scale holds for the whole tensor, and the same on both sides: were a scale for each channel left out,
    one could not see any more whether it moved along with its channel. Products of integers with what is quantized at
    run time, and products with weights in blocks, no longer round their activations either. Returns how many there are.
    """
    names = Names(model)
    nodes = [node for graph in model.graphs() for node in graph if _rounds(node)]
    for node in nodes:
        _clip(node, names)
    remove_dead(model)
    return len(nodes) + leave_out_dynamic_rounding(model) + multiply_precisely(model)


def multiply_precisely(model: ir.Model) -> int:
    """Let products with weights in blocks, experts too, take activations as they are; return how many rounded them."""
    nodes = [node for graph in model.graphs() for node in graph if node.op_type in PRODUCTS and node.domain in DOMAINS]
    coarse = [node for node in nodes if node.attributes.get_int(ACCURACY, 0) == EIGHT_BITS]
    for node in coarse:
        del node.attributes[ACCURACY]
    return len(coarse)


def kernels_rtol(model: ir.Model) -> float:
    """Return what kernels round by that can do nothing else: experts of 8 bits with scales for blocks."""
    nodes = [node for graph in model.graphs() for node in graph if node.op_type == "QMoE" and node.domain in DOMAINS]
    always = any(node.attributes.get_int("expert_weight_bits", 4) == 8 and _in_blocks(node) for node in nodes)
    return EXPERTS_RTOL if always else 0.0


def _in_blocks(node: ir.Node) -> bool:
    return (node.attributes.get_int("block_size", 0) or 0) > 0


def _rounds(node: ir.Node) -> bool:
    """Tell whether a node quantizes an activation only for it to be dequantized again."""
    if node.op_type != QUANTIZE or node.domain not in DOMAINS or known(node.inputs[0]) is not None:
        return False
    if "output_dtype" in node.attributes or node.outputs[0].is_graph_output():
        return False
    grid = _grid(node)
    return grid is not None and all(
        user.op_type == DEQUANTIZE and index == 0 and _grid(user) == grid for user, index in node.outputs[0].uses()
    )


def _grid(node: ir.Node) -> tuple[float, float, ir.DataType] | None:
    """Return scale, zero point and its type, if they are numbers for the whole tensor."""
    scale = known(node.inputs[1])
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = known(node.inputs[2]) if given else None
    if scale is None or scale.size != 1 or (given and (zero is None or zero.size != 1 or not zero.dtype.is_integer())):
        return None
    if zero is None:
        return float(scale.numpy().item()), 0.0, WITHOUT_ZERO_POINT
    return float(scale.numpy().item()), float(zero.numpy().item()), zero.dtype


def _clip(node: ir.Node, names: Names) -> None:
    """Turn what dequantizes the activation into what clips it to the range of its grid."""
    grid, source = _grid(node), node.inputs[0]
    assert grid is not None and source is not None
    scale, zero, kind = grid
    bounds: Any = ml_dtypes.iinfo(kind.numpy())  # type: ignore[no-untyped-call]
    for user in dict.fromkeys(use.node for use in node.outputs[0].uses()):
        low = _bound(user, source, (int(bounds.min) - zero) * scale, names)
        high = _bound(user, source, (int(bounds.max) - zero) * scale, names)
        name = names.free(f"{user.name}.low")
        above = ir.node("Max", [source, low], name=name)
        above.outputs[0].name, above.outputs[0].type = name, source.type
        assert isinstance(user.graph, ir.Graph)
        user.graph.insert_before(user, above)
        user.op_type, user.domain = "Min", ""
        user.attributes.clear()
        user.resize_inputs(2)
        user.replace_input_with(0, above.outputs[0])
        user.replace_input_with(1, high)


def _bound(node: ir.Node, source: ir.Value, number: float, names: Names) -> ir.Value:
    dtype = source.dtype or ir.DataType.FLOAT
    assert isinstance(node.graph, ir.Graph)
    return add_initializer(node.graph, f"{source.name}.bound", ir.tensor(np.array(number, dtype.numpy())), names)
