"""Calls of model-local functions are replaced by the functions' bodies."""

import logging
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from bevel.ir.canonical.dead import subgraphs
from bevel.ir.names import free_names

logger = logging.getLogger(__name__)

# What the inliner raises on a function that has another opset than the model, takes graphs, or calls itself.
NOT_INLINABLE: Final = (ValueError, ir.passes.PassError)


def inline_functions(model: ir.Model) -> None:
    """Inline all functions of the model, and keep those that cannot be: a call is valid as it stands."""
    if not model.functions:
        return
    for function in model.functions.values():
        give_outputs_a_producer(function)
    try:
        InlinePass()(model)
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
