"""Names, nodes and attributes of a parsed model: everything is declared once, before it is used or in some order."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import onnx

from bevel.errors import InvalidModel, UnsupportedModel, nearest
from bevel.frontends.onnx.tensors import AGAIN, check_tensor, check_text, check_type

DEEPEST: Final = 16
"""Levels of graphs inside graphs; deeper nesting is not a network but an attack on the stack."""

# Which field of an attribute holds its value, by the attribute's type.
FIELDS: Final = {
    onnx.AttributeProto.FLOAT: "f",
    onnx.AttributeProto.INT: "i",
    onnx.AttributeProto.STRING: "s",
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.TYPE_PROTO: "tp",
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.INTS: "ints",
    onnx.AttributeProto.STRINGS: "strings",
    onnx.AttributeProto.TENSORS: "tensors",
    onnx.AttributeProto.GRAPHS: "graphs",
    onnx.AttributeProto.TYPE_PROTOS: "type_protos",
}
SPARSE: Final = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)


@dataclass
class Scope:
    """The names of one graph: all it declares, and those already computed where the walk stands."""

    where: str
    depth: int
    outer: "Scope | None" = None
    declared: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)
    is_function: bool = False

    def declare(self, name: str, what: str) -> None:
        """Declare a name for the first time in this graph."""
        check_text((name,), self.where)
        if not name or name in self.declared:
            raise InvalidModel(
                f"{what} {name!r} is declared twice" if name else f"{what} has no name",
                where=self.where,
                remedy="every value of a graph needs a name of its own; repair the program that wrote the model",
            )
        self.declared.add(name)

    def is_computed(self, name: str) -> bool | None:
        """Tell whether a name is computed at this point; None if no graph around declares it."""
        if name in self.declared:
            return name in self.computed
        return self.outer.is_computed(name) if self.outer else None

    def names(self) -> set[str]:
        """Give all names visible here."""
        return self.declared | self.outer.names() if self.outer else self.declared


def check_graphs(proto: onnx.ModelProto, where: str) -> bool:
    """Check the main graph, all graphs inside it, and the functions; tell whether nodes come in computable order."""
    if not proto.graph.output:
        raise InvalidModel("has no outputs, so it computes nothing", where=where, remedy="declare what it gives out")
    in_order = check_graph(proto.graph, Scope(where, 0))
    known = set()
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if key in known or not function.name:
            raise InvalidModel(f"function {function.name!r} is defined twice or has no name", where=where)
        known.add(key)
        in_order &= check_function(function, where)
    return in_order


def check_function(function: onnx.FunctionProto, where: str) -> bool:
    """Check one model-local function; tell whether its nodes come in computable order."""
    scope = Scope(f"{where}: function {function.name!r}", 0, is_function=True)
    for name in function.input:
        scope.declare(name, "input")
    scope.computed |= scope.declared
    in_order = check_nodes(function.node, scope)
    check_outputs(function.output, scope)
    return in_order


def check_graph(graph: onnx.GraphProto, scope: Scope) -> bool:
    """Check one graph and those inside it; tell whether nodes come in computable order."""
    if scope.depth > DEEPEST:
        raise InvalidModel(f"graphs are nested more than {DEEPEST} deep", where=scope.where)
    check_text((graph.name, graph.doc_string), scope.where)
    for value in graph.input:
        scope.declare(value.name, "input")
        check_type(value, f"{scope.where}: input {value.name!r}", required=scope.depth == 0)
    check_initializers(graph, scope)
    scope.computed |= scope.declared
    for value in (*graph.value_info, *graph.output):
        check_type(value, f"{scope.where}: value {value.name!r}", required=False)
    in_order = check_nodes(graph.node, scope)
    check_outputs([value.name for value in graph.output], scope)
    return in_order


def check_initializers(graph: onnx.GraphProto, scope: Scope) -> None:
    """Check that initializers have a name of their own (or an input's), and as much data as they say."""
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name in inputs:
            inputs.discard(tensor.name)
        else:
            scope.declare(tensor.name, "initializer")
        check_tensor(tensor, f"{scope.where}: initializer {tensor.name!r}")


def check_nodes(nodes: Iterable[onnx.NodeProto], scope: Scope) -> bool:
    """Check all nodes of a graph; tell whether each comes after what it uses."""
    nodes = list(nodes)
    for number, node in enumerate(nodes):
        for name in filter(None, node.output):
            scope.declare(name, f"output of {title(node, number)}")
    in_order = True
    for number, node in enumerate(nodes):
        in_order &= check_node(node, title(node, number), scope)
        scope.computed.update(node.output)
    return in_order


def title(node: onnx.NodeProto, number: int) -> str:
    """Call a node by its name, or by its place if it has none."""
    return f"node {node.name!r} ({node.op_type})" if node.name else f"node {number} ({node.op_type})"


def check_node(node: onnx.NodeProto, name: str, scope: Scope) -> bool:
    """Check one node's operator, inputs and attributes; tell whether all it uses is computed before it."""
    where = f"{scope.where}: {name}"
    if not node.op_type:
        raise InvalidModel("has no operator", where=where, remedy=AGAIN)
    check_text((node.op_type, node.domain, node.name, node.overload, node.doc_string, *node.input), where)
    in_order = True
    for value in filter(None, node.input):
        computed = scope.is_computed(value)
        if computed is None:
            raise InvalidModel(f"input {value!r} is not declared", where=where, remedy=nearest(value, scope.names()))
        in_order &= computed
    seen = set()
    for attribute in node.attribute:
        check_text((attribute.name, attribute.ref_attr_name), where)
        if attribute.name in seen or not attribute.name:
            raise InvalidModel(f"attribute {attribute.name!r} is given twice or has no name", where=where)
        seen.add(attribute.name)
        in_order &= check_attribute(attribute, where, scope)
    return in_order


def check_attribute(attribute: onnx.AttributeProto, where: str, scope: Scope) -> bool:
    """Check one attribute and the tensors or graphs it holds; tell whether nodes come in computable order."""
    where = f"{where}: attribute {attribute.name!r}"
    if attribute.ref_attr_name:
        if not scope.is_function:
            raise InvalidModel(f"refers to parameter {attribute.ref_attr_name!r} outside a function", where=where)
        return True
    if attribute.type in SPARSE:
        raise UnsupportedModel("is a sparse tensor", where=where, remedy="store it dense")
    if attribute.type not in FIELDS:
        raise InvalidModel(f"has the unknown type {attribute.type}", where=where, remedy=AGAIN)
    if attribute.type in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH, onnx.AttributeProto.TYPE_PROTO):
        check_present(attribute, where)
    for tensor in (attribute.t,) if attribute.type == onnx.AttributeProto.TENSOR else attribute.tensors:
        check_tensor(tensor, where)
    graphs = (attribute.g,) if attribute.type == onnx.AttributeProto.GRAPH else tuple(attribute.graphs)
    inner = [Scope(where, scope.depth + 1, scope, is_function=scope.is_function) for _ in graphs]
    orders = [check_graph(graph, space) for graph, space in zip(graphs, inner, strict=True)]
    return all(orders)


def check_present(attribute: onnx.AttributeProto, where: str) -> None:
    """Refuse an attribute without the value that its type promises."""
    if not attribute.HasField(FIELDS[attribute.type]):
        raise InvalidModel("has no value of the type it states", where=where, remedy=AGAIN)


def check_outputs(names: Iterable[str], scope: Scope) -> None:
    """Check that a graph gives out values of its own, each once."""
    seen: set[str] = set()
    for name in names:
        if name not in scope.declared:
            raise InvalidModel(
                f"output {name!r} is not computed in this graph",
                where=scope.where,
                remedy=nearest(name, scope.declared)
                if scope.outer is None
                else "an Identity node must bring outer values in",
            )
        if name in seen:
            raise InvalidModel(f"output {name!r} is given out twice", where=scope.where, remedy="use an Identity node")
        seen.add(name)
