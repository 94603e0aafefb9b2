"""Parts of a graph as models of their own, and models as parts of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.names import Names
from bevel.ir.provenance import is_learnt, mark_learnt


def piece(model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    """Return what computes some values of a graph from others, as a model; it shares the weights' content.

    Values keep their names. Raises `EditRefused` where an output does not come from the inputs and weights alone.
    """
    nodes = _between(set(inputs), outputs)
    graph = model.graph
    ordered = [node for node in graph if node in nodes]
    used = dict.fromkeys(value for node in ordered for value in uses(node))
    weights = [value for value in used if value.is_initializer() and value not in set(inputs)]
    view = ir.GraphView(
        inputs, outputs, nodes=ordered, initializers=weights, opset_imports=graph.opset_imports, name=graph.name
    )
    copy = view.clone()
    for value in copy.initializers.values():
        learnt = is_learnt(value)
        value.metadata_props.clear()  # what is made of a parameter is that parameter no more
        value.meta.clear()
        mark_learnt(value, learnt)
    return ir.Model(copy, ir_version=model.ir_version, functions=list(model.functions.values()))


def _between(inputs: set[ir.Value], outputs: Sequence[ir.Value]) -> set[ir.Node]:
    """Return the nodes that lead from inputs and weights to outputs."""
    found: set[ir.Node] = set()
    pending = [value for value in outputs if value not in inputs]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None:
            raise EditRefused("is not computed from what was given", where=f"value {value.name!r}")
        if node not in found:
            found.add(node)
            taken = (each for each in uses(node) if each not in inputs)
            pending.extend(each for each in taken if not each.is_initializer())
    return found


def uses(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node takes from the graph that it stands in, by way of the graphs inside it too."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
            yield from _captured(attribute.as_graph())


def _captured(body: ir.Graph) -> Iterator[ir.Value]:
    """Yield what a graph takes from those around it."""
    own = {*body.inputs, *body.initializers.values(), *(value for node in body for value in node.outputs)}
    found = [*body.outputs, *(value for node in body for value in uses(node))]
    yield from (value for value in found if value is not None and value not in own)


def graft(
    source: ir.Model, graph: ir.Graph, given: Mapping[str, ir.Value], prefix: str, names: Names, before: ir.Node | None
) -> list[ir.Value]:
    """Move the nodes and weights of a model into a graph, before a node or at its end, and return its outputs there.

    `given` says by name what takes the place of its inputs. Nodes and values get names that begin with `prefix`. The
    model must not be used afterwards.
    """
    body, outputs = source.graph, list(source.graph.outputs)
    body.outputs.clear()
    for value in list(body.inputs):
        value.replace_all_uses_with(given[value.name or ""])
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        value.name = names.free(f"{prefix}.{name}")
        graph.register_initializer(value)
    nodes = list(body)
    body.remove(nodes)
    for node in nodes:
        node.name = names.free(f"{prefix}.{node.name or node.op_type}")
        for value in node.outputs:
            value.name = names.free(f"{prefix}.{value.name}")
    if before is None:
        graph.extend(nodes)
    else:
        graph.insert_before(before, nodes)
    return outputs
