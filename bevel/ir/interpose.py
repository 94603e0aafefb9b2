"""Put a matrix product in front of layers, which changes nothing at first: what cannot be folded is done there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer


def interpose(model: ir.Model, nodes: Sequence[ir.Node], sizes: Mapping[ir.Node, int]) -> list[ir.Value]:
    """Let nodes read their first operand through a MatMul with an identity, and return the identities.

    Nodes that read the same value share one. `sizes` says how many entries the last axis of that value has. Raises
    `EditRefused` where the operand has no such axis last, as in front of a convolution.
    """
    for node in nodes:
        if node.op_type not in ("MatMul", "Gemm") or node.attributes.get_int("transA", 0) != 0:
            raise EditRefused(
                f"{node.op_type} does not sum over the last axis of what it reads",
                where=f"node {node.name!r}",
                remedy="a product can be put in front of MatMul and Gemm: leave this layer out",
            )
    names, made = Names(model), dict[ir.Value, tuple[ir.Value, ir.Value]]()
    for node in nodes:
        value = node.inputs[0]
        assert value is not None and node.graph is not None
        if value not in made:
            made[value] = _product(node, value, sizes[node], names)
        node.replace_input_with(0, made[value][1])
    return [identity for identity, _ in made.values()]


def _product(node: ir.Node, value: ir.Value, size: int, names: Names) -> tuple[ir.Value, ir.Value]:
    """Insert a product of a value with an identity before a node, and return the identity and the result."""
    graph = node.graph
    assert isinstance(graph, ir.Graph) and value.dtype is not None
    name = names.free(f"{value.name}.turned")
    identity = add_initializer(graph, f"{name}.matrix", ir.tensor(np.eye(size, dtype=value.dtype.numpy())), names)
    product = ir.node("MatMul", [value, identity], name=name)
    product.outputs[0].name, product.outputs[0].type, product.outputs[0].shape = name, value.type, value.shape
    graph.insert_before(node, product)
    return identity, product.outputs[0]
