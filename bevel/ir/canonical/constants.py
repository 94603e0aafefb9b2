"""Constants become initializers; initializers that are no inputs stop being listed as such."""

import math
from typing import Final

import numpy as np
import onnx_ir as ir

# Below this version of the format, every initializer had to be listed as a graph input as well.
FIRST_VERSION_WITH_UNLISTED: Final = 4
# A ConstantOfShape above this stays a node: nobody stores such a weight, and saving would have to write it out.
LARGEST_FILL: Final = 2**31


def drop_listed_initializers(model: ir.Model) -> None:
    """Take the initializers out of the inputs, where they are listed by habit and not as overridable defaults."""
    graph = model.graph
    if listed_by_habit(model):
        graph.inputs[:] = [value for value in graph.inputs if not value.is_initializer()]
    model.ir_version = max(model.ir_version, FIRST_VERSION_WITH_UNLISTED)


def listed_by_habit(model: ir.Model) -> bool:
    """Tell whether initializers are listed as inputs because of the format, not as defaults to be overridden.

    Old files had no choice. Newer files of exporters with that habit list all initializers, among them weights.
    """
    if model.ir_version < FIRST_VERSION_WITH_UNLISTED:
        return True
    initializers = model.graph.initializers.values()
    return all(value.is_graph_input() for value in initializers) and any(_rank(value) >= 2 for value in initializers)


def _rank(value: ir.Value) -> int:
    return len(value.shape) if value.shape is not None else 0


def lift_constants(model: ir.Model) -> None:
    """Turn Constant nodes, and ConstantOfShape nodes of constant shape, into initializers of their own graph."""
    for graph in list(model.graphs()):
        for node in graph:
            lift(node)


def lift(node: ir.Node) -> None:
    """Replace a node that has one constant output, and no place in the interface, by an initializer."""
    if node.domain != "" or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return
    tensor = constant_of(node)
    if tensor is not None:
        replace_by_initializer(node.outputs[0], tensor)
        graph = node.graph
        assert graph is not None
        graph.remove(node, safe=True)


def constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    """Give the tensor of a Constant, or of a ConstantOfShape over a constant; None for any other node."""
    if node.op_type == "Constant":
        return constant_tensor(node)
    if node.op_type == "ConstantOfShape":
        return filled_tensor(node)
    return None


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Give the tensor a Constant node holds, in whichever attribute; None if it is a function's parameter."""
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.is_ref() or len(node.attributes) != 1:
        return None
    match attribute.name:
        case "value":
            tensor: ir.TensorProtocol = attribute.value
            return tensor
        case "value_float" | "value_floats":
            return ir.tensor(np.array(attribute.value, np.float32))
        case "value_int" | "value_ints":
            return ir.tensor(np.array(attribute.value, np.int64))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape(()))
        case "value_strings":
            texts = [text.encode() for text in attribute.as_strings()]
            return ir.StringTensor(texts, shape=ir.Shape((len(texts),)))
    return None


def filled_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Give the tensor a ConstantOfShape makes: one number under a view of the whole shape, so it takes no memory."""
    size = known(node.inputs[0]) if node.inputs else None
    fill = node.attributes.get("value")
    if size is None or (fill is not None and fill.is_ref()):
        return None
    content: ir.TensorProtocol = ir.tensor(np.zeros(1, np.float32)) if fill is None else fill.value
    number = content.numpy().reshape(())
    shape = tuple(int(n) for n in size.numpy())
    if any(n < 0 for n in shape) or math.prod(shape) * number.itemsize > LARGEST_FILL:
        return None
    return ir.Tensor(np.broadcast_to(number, shape), dtype=content.dtype)


def known(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Give the tensor of a value that is the same in every run: an initializer which no caller can override."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def replace_by_initializer(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Put an initializer of the same name, in the same graph, where a node's output was used."""
    graph = value.graph
    assert graph is not None and value.name
    tensor.name = value.name
    constant = ir.Value(
        name=value.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        doc_string=value.doc_string,
        const_value=tensor,
        metadata_props=dict(value.metadata_props),
    )
    value.replace_all_uses_with(constant)
    graph.initializers.add(constant)
    return constant
