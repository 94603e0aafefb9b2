"""Names of nodes, told apart."""

import onnx_ir as ir

from bevel.ir.names import Names


def name_nodes_apart(model: ir.Model) -> None:
    """Rename nodes whose name another node of the same graph has: ONNX Runtime refuses such models."""
    names = Names(model)
    for graph in model.graphs():
        seen: set[str] = set()
        for node in graph:
            if node.name and node.name in seen:
                node.name = names.free(node.name)
            elif node.name:
                seen.add(node.name)
