"""Identities and repeated computations: found and taken out of a graph, in place."""

from collections.abc import Hashable, Iterator
from typing import Any

import onnx
import onnx_ir as ir

from bevel.ir.canonical.dead import subgraphs

# Attributes of more bytes than this are not compared.
LARGEST_ATTRIBUTE = 1024


def remove_identities(graph: ir.Graph) -> None:
    """Take the Identity nodes out of a graph and those inside it.

    One whose output is the graph's stays, unless it can hand its name on: its input is made by a node of the same
    graph and is no output itself. Names of graph inputs and outputs stay what they are.
    """
    for node in graph:
        for inner in subgraphs(node):
            remove_identities(inner)
        if node.op_type == "Identity" and node.domain == "" and node.inputs[0] is not None:
            bypass(graph, node, node.inputs[0], node.outputs[0])


def bypass(graph: ir.Graph, node: ir.Node, source: ir.Value, copy: ir.Value) -> None:
    """Use `source` where `node` gave its output `copy`, and remove the node.

    Where `copy` is the graph's output, `source` takes its name; the node stays if it cannot.
    """
    if copy.is_graph_output():
        producer = source.producer()
        if producer is None or producer.graph is not graph or source.is_graph_output():
            return
        if sum(output is copy for output in graph.outputs) != 1:
            return
        graph.outputs[graph.outputs.index(copy)] = source
        name, copy.name = copy.name, source.name
        source.name, source.type, source.shape = name, copy.type or source.type, copy.shape or source.shape
        source.metadata_props.update(copy.metadata_props)
    ir.convenience.replace_all_uses_with(copy, source)
    graph.remove(node, safe=True)


def merge_repeated(graph: ir.Graph, opset: int) -> None:
    """Compute once what several nodes compute from the same operands; nodes that hold graphs or draw numbers stay."""
    known: dict[Hashable, ir.Node] = {}
    for node in graph:
        for inner in subgraphs(node):
            merge_repeated(inner, opset)
        key = _key(node, opset)
        if key is None or any(value.is_graph_output() for value in node.outputs):
            continue
        first = known.setdefault(key, node)
        if first is not node:
            ir.convenience.replace_all_uses_with(node.outputs, first.outputs)
            graph.remove(node, safe=True)


def _key(node: ir.Node, opset: int) -> Hashable:
    """Return what determines a node's outputs, None if it is not sure that anything does."""
    if node.domain != "" or subgraphs(node) or not _deterministic(node.op_type, opset):
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    attributes = tuple(_attributes(node))
    if sum(map(len, attributes)) > LARGEST_ATTRIBUTE:
        return None
    present = tuple(bool(value.name) for value in node.outputs)
    return node.op_type, node.overload, tuple(map(id, node.inputs)), present, attributes


def _attributes(node: ir.Node) -> Iterator[bytes]:
    for name in sorted(node.attributes):
        attribute = ir.to_proto(node.attributes[name])
        attribute.ClearField("doc_string")
        yield attribute.SerializeToString(deterministic=True)


def _deterministic(op_type: str, opset: int) -> bool:
    if not onnx.defs.has(op_type, opset):
        return False
    schema: Any = onnx.defs.get_schema(op_type, opset)
    return bool(schema.node_determinism == schema.NodeDeterminism.Deterministic)
