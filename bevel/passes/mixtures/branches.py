"""Look at mixtures without their conditions."""

from __future__ import annotations

import onnx_ir as ir

from bevel.ir.canonical.dead import clear
from bevel.ir.names import Names
from bevel.passes.mixtures.region import BEST, CHOICE


def inline_branches(model: ir.Model) -> None:
    """Put what conditions run in their place, where they depend on a choice: with no rows it gives no rows.

    Only for looking at: what is read of the result has to be compared with the model as it was.
    """
    names = Names(model)
    depends: set[ir.Value] = set()
    for node in list(model.graph):
        if node.op_type in (CHOICE, BEST) or any(value in depends for value in node.inputs if value is not None):
            depends.update(node.outputs)
            if "then_branch" in node.attributes:
                depends.update(_inline(model.graph, node, names))


def _inline(graph: ir.Graph, node: ir.Node, names: Names) -> list[ir.Value]:
    body = node.attributes["then_branch"].as_graph()
    outputs = list(body.outputs)
    body.outputs.clear()
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        value.name = names.free(name)
        graph.register_initializer(value)
    nodes = list(body)
    body.remove(nodes)
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        old.name, new.name = names.free(f"{old.name}.if"), old.name
        new.shape = new.shape or old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    clear(node.attributes["else_branch"].as_graph())
    graph.remove(node, safe=True)
    return outputs
