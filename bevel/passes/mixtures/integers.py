"""Products in 8 bits, seen as what they stand for: products of floats with weights that were rounded.

Only for looking at: inputs are not rounded here, so that what is read of the result is as far from the graph as that.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer

QUANTIZE: Final = "DynamicQuantizeLinear"
PRODUCT: Final = "MatMulInteger"


def in_floats(model: ir.Model) -> set[ir.Node]:
    """Put floats in the place of inputs that are quantized at run time, and return the products that read them."""
    names = Names(model)
    products: set[ir.Node] = set()
    for node in list(model.graph):
        if node.op_type == QUANTIZE and node.inputs[0] is not None:
            products |= _read(model.graph, node, node.inputs[0], names)
    return products


def _read(graph: ir.Graph, node: ir.Node, source: ir.Value, names: Names) -> set[ir.Node]:
    """Let what reads codes read what they are of, and what reads their scale read one; zero points are read no more."""
    one = add_initializer(graph, f"{node.outputs[1].name}.one", ir.tensor(np.float32(1)), names)
    node.outputs[1].replace_all_uses_with(one)
    readers = [use.node for use in node.outputs[0].uses()]
    node.outputs[0].replace_all_uses_with(source)
    found: set[ir.Node] = set()
    while readers:
        reader = readers.pop()
        if reader.op_type == PRODUCT:
            found |= {_product(graph, reader, names)} if reader.graph is graph and _is_fixed(reader) else set()
            continue
        for value in reader.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            readers += [use.node for use in value.uses()]
    return found


def _is_fixed(node: ir.Node) -> bool:
    """Say whether what a product multiplies by is a weight."""
    given = [node.inputs[place] for place in (1, 3) if place < len(node.inputs)]
    return all(value is None or value.const_value is not None for value in given)


def _product(graph: ir.Graph, node: ir.Node, names: Names) -> ir.Node:
    """Put a product of floats in the place of one of integers."""
    data, weight = node.inputs[:2]
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    assert data is not None and weight is not None and weight.const_value is not None
    array = weight.const_value.numpy().astype(np.float32)
    if zero is not None and zero.const_value is not None:
        array = array - zero.const_value.numpy().astype(np.float32)
    matrix = add_initializer(graph, f"{weight.name}.floats", ir.tensor(array), names)
    product = ir.node("MatMul", [data, matrix], name=node.name)
    old, (new,) = node.outputs[0], product.outputs
    new.type, new.shape = ir.TensorType(ir.DataType.FLOAT), old.shape
    graph.insert_before(node, product)
    old.replace_all_uses_with(new)
    name = old.name
    graph.remove(node, safe=True)
    new.name = name
    return product
