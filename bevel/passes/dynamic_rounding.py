"""Activations that are quantized at run time, with their rounding left out: integer products become products of floats.

The scale is one for the whole tensor, and the range is that of the numbers: nothing is clipped.
"""

from typing import Final

import onnx_ir as ir

from bevel.ir.names import Names

DYNAMIC: Final = "DynamicQuantizeLinear"
FLOATS: Final = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
"""What computes the same with codes less their zero points as floats."""
CODES, WEIGHT, ZERO, WEIGHT_ZERO = range(4)


def leave_out_dynamic_rounding(model: ir.Model) -> int:
    """Multiply activations over their scales with weights, in floats, in the place of codes with codes.

    Only where codes go into products that are cast to floats, and nowhere else. Returns how many activations there are.
    """
    names = Names(model)
    found = [node for graph in model.graphs() for node in graph if _goes_into_products(node)]
    for node in found:
        _compute_in_floats(node, names)
    return len(found)


def _goes_into_products(node: ir.Node) -> bool:
    """Say whether a node quantizes what nothing but products read, as codes and their zero point."""
    if node.op_type != DYNAMIC or node.domain or any(value.is_graph_output() for value in node.outputs):
        return False
    codes, _, zero = node.outputs
    uses = [*((use, CODES) for use in codes.uses()), *((use, ZERO) for use in zero.uses())]
    return bool(codes.uses()) and all(use.idx == place and _is_product(use.node, codes, zero) for use, place in uses)


def _is_product(node: ir.Node, codes: ir.Value, zero: ir.Value) -> bool:
    """Say whether a node multiplies codes with a zero point, for floats."""
    if node.op_type not in FLOATS or node.domain or len(node.inputs) <= ZERO:
        return False
    if node.inputs[CODES] is not codes or node.inputs[ZERO] is not zero:
        return False
    offset = node.inputs[WEIGHT_ZERO] if len(node.inputs) > WEIGHT_ZERO else None
    if offset is not None and node.op_type == "ConvInteger" and (offset.shape is None or len(offset.shape)):
        return False
    result = node.outputs[0]
    users = [use.node for use in result.uses()]
    return not result.is_graph_output() and all(user.op_type == "Cast" and not user.domain for user in users)


def _compute_in_floats(node: ir.Node, names: Names) -> None:
    """Let all products that read the codes of a node read what was quantized, over its scale."""
    source, scale = node.inputs[0], node.outputs[1]
    kind = None if source is None else source.type
    users = list(dict.fromkeys(use.node for use in node.outputs[CODES].uses()))
    steps = _put(users[0], "Div", [source, scale], kind, names)
    for user in users:
        weight = _float(user, WEIGHT, kind, names)
        if len(user.inputs) > WEIGHT_ZERO and user.inputs[WEIGHT_ZERO] is not None:
            weight = _put(user, "Sub", [weight, _float(user, WEIGHT_ZERO, kind, names)], kind, names)
        user.op_type = FLOATS[user.op_type]
        user.resize_inputs(2)
        user.replace_input_with(CODES, steps)
        user.replace_input_with(WEIGHT, weight)
        user.outputs[0].type = kind


def _float(node: ir.Node, place: int, kind: ir.TypeProtocol | None, names: Names) -> ir.Value:
    return _put(node, "Cast", [node.inputs[place]], kind, names, to=int(ir.DataType.FLOAT))


def _put(
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    kind: ir.TypeProtocol | None,
    names: Names,
    **attributes: int,
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=names.free(f"{before.name}.{op_type}"))
    node.outputs[0].name, node.outputs[0].type = node.name, kind
    assert isinstance(before.graph, ir.Graph)
    before.graph.insert_before(before, node)
    return node.outputs[0]
