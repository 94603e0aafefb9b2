"""Removal of nodes and initializers that nothing uses."""

import onnx_ir as ir

from bevel.ir import nested


def remove_dead(model: ir.Model) -> None:
    """Remove standard nodes whose outputs nobody uses, innermost graphs last, then initializers nobody uses.

    Nodes of other domains stay: they may act on the world. Inputs of the model stay, outputs too.
    """
    remove_dead_nodes(model.graph)
    for graph in model.graphs():
        remove_unused_initializers(graph)


def remove_dead_nodes(graph: ir.Graph) -> None:
    """Remove dead nodes in reverse order, so that what only they used is seen dead as well."""
    for node in reversed(graph):
        if node.domain == "" and not any(is_used(value) for value in node.outputs):
            for subgraph in subgraphs(node):
                clear(subgraph)
            graph.remove(node, safe=True)
            continue
        for subgraph in subgraphs(node):
            remove_dead_nodes(subgraph)


def clear(graph: ir.Graph) -> None:
    """Remove all nodes of a graph inside a node that goes, so that what they read is not held to be used any more."""
    graph.outputs.clear()
    for node in list(graph):
        for subgraph in subgraphs(node):
            clear(subgraph)
    graph.remove(list(graph), safe=True)


def remove_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers without a use, unless they are inputs or outputs of their graph, or kept for later."""
    for name, value in list(graph.initializers.items()):
        if not is_used(value) and not value.is_graph_input() and nested.KEY not in value.metadata_props:
            del graph.initializers[name]


def is_used(value: ir.Value) -> bool:
    """Tell whether a node consumes the value, or its graph gives it out."""
    return bool(value.uses()) or value.is_graph_output()


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Give the graphs a node holds directly, in the order of its attributes."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            found.extend(attribute.as_graphs())
    return found
