"""Nodes against the definitions of their operators: how many inputs and outputs, which attributes, which types."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir

from bevel.errors import InvalidModel, nearest


@dataclass(frozen=True)
class Formal:
    """An input as its operator defines it: the variable of its type, or None if types may differ, and what it takes."""

    variable: str | None
    types: frozenset[str]


@dataclass(frozen=True)
class Definition:
    """What onnx's definition of an operator says, copied out once: reading it there is slow."""

    inputs: tuple[Formal, ...]
    input_count: tuple[int, int]
    output_count: tuple[int, int]
    attributes: dict[str, str]
    required: tuple[str, ...]


@cache
def definition(domain: str, op_type: str, opset: int) -> Definition | None:
    """Give the definition of an operator at a version of its set; None if onnx does not know it."""
    if not onnx.defs.has(op_type, opset, domain):
        return None
    schema = onnx.defs.get_schema(op_type, opset, domain)
    return Definition(
        tuple(Formal(item.type_str if item.is_homogeneous else None, frozenset(item.types)) for item in schema.inputs),
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: str(attribute.type).rpartition(".")[2] for name, attribute in schema.attributes.items()},
        tuple(name for name, attribute in schema.attributes.items() if attribute.required),
    )


def defined_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, Definition]]:
    """Give the nodes whose operators onnx defines, with the definitions; functions of the model are not among them."""
    for node in model.graph.all_nodes():
        found = definition(node.domain, node.op_type, model.opset_imports.get(node.domain, 0))
        if found is not None and node.op_identifier() not in model.functions:
            yield node, found


def check_operators(model: ir.Model, where: str) -> None:
    """Refuse nodes whose inputs, outputs or attributes their operator does not have."""
    for node, defined in defined_nodes(model):
        check_count(node, len(node.inputs), defined.input_count, "inputs", where)
        check_count(node, len(node.outputs), defined.output_count, "outputs", where)
        check_attributes(node, defined, where)


def place(node: ir.Node, where: str) -> str:
    """Name a node for a message."""
    return f"{where}: node {node.name or node.outputs[0].name!r} ({node.op_type})"


def check_count(node: ir.Node, found: int, bounds: tuple[int, int], what: str, where: str) -> None:
    """Refuse too few or too many inputs or outputs."""
    least, most = bounds
    if not least <= found <= most:
        takes = str(least) if least == most else f"{least} to {most}"
        raise InvalidModel(
            f"has {found} {what}, the operator takes {takes}", where=place(node, where), remedy="export the model again"
        )


def check_attributes(node: ir.Node, defined: Definition, where: str) -> None:
    """Refuse attributes the operator does not know, of another type than it states, or missing ones."""
    for name, attribute in node.attributes.items():
        if name not in defined.attributes:
            raise InvalidModel(
                f"has an unknown attribute {name!r}", where=place(node, where), remedy=nearest(name, defined.attributes)
            )
        if attribute.type.name != defined.attributes[name]:
            raise InvalidModel(
                f"attribute {name!r} is of type {attribute.type.name}",
                where=place(node, where),
                remedy=f"the operator takes {defined.attributes[name]}",
            )
    for name in defined.required:
        if name not in node.attributes:
            raise InvalidModel(
                f"lacks attribute {name!r}", where=place(node, where), remedy="the operator cannot do without it"
            )


def check_types(model: ir.Model, where: str) -> None:
    """Refuse inputs of a type the operator does not take, or which differ where it needs equal ones."""
    for node, defined in defined_nodes(model):
        bound: dict[str, str] = {}
        for index, value in enumerate(node.inputs):
            kind = type_text(value)
            if kind is not None and defined.inputs:
                check_type(node, index, kind, defined.inputs[min(index, len(defined.inputs) - 1)], bound, where)


def check_type(node: ir.Node, index: int, kind: str, formal: Formal, bound: dict[str, str], where: str) -> None:
    """Check the type of one input, against its definition and against what the same type variable stood for."""
    if kind not in formal.types:
        raise InvalidModel(
            f"input {index} is a {kind}",
            where=place(node, where),
            remedy=f"the operator takes {', '.join(sorted(formal.types))}",
        )
    if formal.variable and bound.setdefault(formal.variable, kind) != kind:
        raise InvalidModel(
            f"input {index} is a {kind}, another one a {bound[formal.variable]}",
            where=place(node, where),
            remedy="they must be of one type; insert a Cast",
        )


def type_text(value: ir.Value | None) -> str | None:
    """Write the type of a value as operator definitions do; None if it is not known to be a plain tensor."""
    if value is None or not isinstance(value.type, ir.TensorType) or value.dtype is None:
        return None
    return f"tensor({value.dtype.name.lower()})" if value.dtype != ir.DataType.UNDEFINED else None
