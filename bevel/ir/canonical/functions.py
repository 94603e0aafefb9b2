"""Calls of model-local functions are replaced by the functions' bodies."""

import logging
from collections.abc import Mapping
from typing import Final

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from bevel.errors import InvalidModel
from bevel.ir.canonical.dead import subgraphs
from bevel.ir.names import free_names

logger = logging.getLogger(__name__)

# What the inliner raises on a function that takes graphs, or inputs that it does not have.
NOT_INLINABLE: Final = (ValueError, ir.passes.PassError)


def inline_functions(model: ir.Model) -> None:
    """Inline all functions of the model, and keep those that cannot be: a call is valid as it stands.

    Raises `InvalidModel` if functions call each other in a circle.
    """
    if not model.functions:
        return
    for function in model.functions.values():
        give_outputs_a_producer(function)
        meet_opsets(function, model.opset_imports)
    try:
        InlinePass(lambda function: has_opsets(function, model.opset_imports))(model)
    except ir.passes.PreconditionError as error:
        raise InvalidModel(str(error), remedy="loops are written with the Loop or Scan operator") from error
    except NOT_INLINABLE as error:
        logger.info("functions kept as calls: %s", error)
    make_names_unique(model.graph, set())


def give_outputs_a_producer(function: ir.Function) -> None:
    """Put an Identity before outputs that are inputs or that repeat, so that a caller's names can be kept."""
    seen: set[ir.Value] = set(function.inputs)
    for index, output in enumerate(function.outputs):
        if output in seen:
            identity = ir.node("Identity", [output])
            identity.outputs[0].name = f"{output.name}/{index}"
            function.append(identity)
            function.outputs[index] = identity.outputs[0]
        seen.add(output)


def meet_opsets(function: ir.Function, wanted: Mapping[str, int]) -> None:
    """Give a function the wanted versions of operator sets where all its operators mean the same in both."""
    for domain, version in function.opset_imports.items():
        called = {node.op_type for node in function.all_nodes() if node.domain == domain}
        other = wanted.get(domain, version)
        if all(since(domain, op_type, version) == since(domain, op_type, other) for op_type in called):
            function.opset_imports[domain] = other


def since(domain: str, op_type: str, version: int) -> int:
    """Give the version of an operator set that defines an operator as `version` has it."""
    try:
        return int(onnx.defs.get_schema(op_type, version, domain).since_version)
    except onnx.defs.SchemaError:
        return -version  # differs from any other version's


def has_opsets(function: ir.Function, wanted: Mapping[str, int]) -> bool:
    """Tell whether a function's nodes would mean the same among those of the model."""
    return all(wanted.get(domain, version) == version for domain, version in function.opset_imports.items())


def make_names_unique(graph: ir.Graph, outer: set[str]) -> None:
    """Rename what inlined bodies declare a second time, in this graph and inside it; outputs keep their names."""
    names = outer | {value.name for value in graph.inputs if value.name} | set(graph.initializers)
    outputs = {value.name for value in graph.outputs if value.name}
    for node in graph:
        for value in node.outputs:
            if value.name and value.name in names and value.name not in outputs:
                value.name = next(free_names(value.name, names))
            elif value.name:
                names.add(value.name)
    for node in graph:
        for subgraph in subgraphs(node):
            make_names_unique(subgraph, names)
