"""Where a constant can be added to what a layer gives: its bias, one right after it, or the mean it is freed of."""

import onnx_ir as ir

from bevel.passes.fitting.layers import CONV_TRANSPOSE, MATMUL, Layer
from bevel.passes.fitting.normalization import is_normalization


def can_shift(layer: Layer) -> bool:
    """Say whether a change of the mean of a layer's output can be undone by a parameter that is there."""
    if layer.node.op_type == CONV_TRANSPOSE:  # a constant at its input is none at the borders of its output
        return False
    user = only_user(layer.node)
    return bias_of(layer) is not None or (user is not None and is_normalization(user))


def bias_of(layer: Layer) -> ir.Value | None:
    """Return the vector that is added to each row of a layer's output, and to nothing else."""
    value = _added(layer.node) if layer.node.op_type == MATMUL else layer.bias
    if value is None or not value.is_initializer() or value.is_graph_input() or len(value.uses()) != 1:
        return None
    attributes, tensor = layer.node.attributes, value.const_value
    plain = attributes.get_float("alpha", 1.0) == 1.0 == attributes.get_float("beta", 1.0)
    fits = tensor is not None and tuple(tensor.shape.numpy()) == (layer.sizes[layer.out_axis],)
    return value if plain and fits else None


def _added(node: ir.Node) -> ir.Value | None:
    """Return what is added to a node's output right after it."""
    user = only_user(node)
    if user is None or user.op_type != "Add" or user.domain:
        return None
    return next((value for value in user.inputs if value is not node.outputs[0]), None)


def only_user(node: ir.Node) -> ir.Node | None:
    """Return the node that alone reads what another gives, None where the graph gives it out, too."""
    output = node.outputs[0]
    users = [use.node for use in output.uses()]
    return users[0] if len(users) == 1 and not output.is_graph_output() else None
