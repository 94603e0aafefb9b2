"""Nodes in an order in which they can be computed, or the cycle that forbids one."""

import onnx_ir as ir

from bevel.errors import InvalidModel, nearest
from bevel.ir.canonical.dead import subgraphs
from bevel.ir.names import value_names


def put_in_order(model: ir.Model, where: str) -> None:
    """Sort the nodes of all graphs, as little as needed; refuse cycles and values from nowhere."""
    check_origins(model, where)
    for body in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            body.sort()
        except ValueError as error:
            raise InvalidModel(
                f"nodes depend on each other: {' -> '.join(find_cycle(body))}",
                where=where,
                remedy="loops are written with the Loop or Scan operator",
            ) from error


def check_origins(model: ir.Model, where: str) -> None:
    """Refuse a value that is used but that no node, input or initializer of the model provides."""
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.graph is None:
                raise InvalidModel(
                    f"input {value.name!r} is not declared",
                    where=f"{where}: node {node.name!r} ({node.op_type})",
                    remedy=nearest(str(value.name), value_names(model)),
                )
    for value in model.graph.outputs:
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            raise InvalidModel(f"output {value.name!r} is not computed", where=where)


def find_cycle(graph: ir.Graph) -> list[str]:
    """Give the names of nodes that form a cycle, the first one repeated at the end."""
    needs = {node: dependencies(node) for node in graph}
    ready = [node for node, others in needs.items() if not others]
    users: dict[ir.Node, list[ir.Node]] = {node: [] for node in graph}
    for node, others in needs.items():
        for other in others:
            users[other].append(node)
    while ready:
        done = ready.pop()
        del needs[done]
        for user in users[done]:
            needs[user].discard(done)
            if not needs[user]:
                ready.append(user)
    return walk_back(needs)


def dependencies(node: ir.Node) -> set[ir.Node]:
    """Give the nodes of the same graph whose outputs a node uses, itself or in a graph inside it."""
    inner = [node, *(other for graph in subgraphs(node) for other in graph.all_nodes())]
    producers = (value.producer() for user in inner for value in user.inputs if value is not None)
    return {producer for producer in producers if producer is not None and producer.graph is node.graph}


def walk_back(needs: dict[ir.Node, set[ir.Node]]) -> list[str]:
    """Follow needs from any node that has some until one repeats."""
    path: list[ir.Node] = []
    node = next(iter(needs))
    while node not in path:
        path.append(node)
        node = min(needs[node], key=lambda other: str(other.name))
    return [f"{other.name or other.op_type}" for other in reversed([*path[path.index(node) :], node])]
