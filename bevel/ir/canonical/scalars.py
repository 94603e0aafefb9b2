"""Range takes scalars; where a model may give it lists of one entry, these become scalars.

ONNX Runtime runs such a Range while it does not know better, and refuses it once it knows the lists to be constant:
folding lets it know. The standard's own definition of AffineGrid is such a model.
"""

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names


def settle_scalars(model: ir.Model) -> None:
    """Reshape what a Range is given to a scalar, unless its shape is known to be one."""
    names = Names(model)
    for graph in list(model.graphs()):
        for node in graph:
            if node.op_type == "Range" and node.domain == "":
                settle_node(node, names)


def settle_node(node: ir.Node, names: Names) -> None:
    """Put a Reshape before every input of a node that is not known to be a scalar."""
    for index, value in enumerate(node.inputs):
        if value is None or (value.shape is not None and len(value.shape) == 0):
            continue
        node.replace_input_with(index, scalar_of(value, node, names))


def scalar_of(value: ir.Value, node: ir.Node, names: Names) -> ir.Value:
    """Reshape a value to a scalar, right before the node that takes it."""
    graph = node.graph
    assert isinstance(graph, ir.Graph) and value.name
    empty = ir.Value(
        name=names.free(f"{value.name}.scalar.shape"),
        shape=ir.Shape([0]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.zeros(0, np.int64)),
    )
    graph.register_initializer(empty)
    name = names.free(f"{value.name}.scalar")
    reshape = ir.node("Reshape", [value, empty], name=name)
    scalar = reshape.outputs[0]
    scalar.name, scalar.type, scalar.shape = name, value.type, ir.Shape([])
    graph.insert_before(node, reshape)
    return scalar
