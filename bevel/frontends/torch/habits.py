"""What the exporter writes and a model is better without: notes for its own use, copies of parameters, biases of zeros,
one name for two values.
"""

from typing import Final

import onnx_ir as ir

from bevel.ir.canonical.constants import known
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.names import Names
from bevel.ir.provenance import KEY, provenance

# Of the notes on nodes, these are for a reader; the others repeat the graph or hold paths of the exporter's machine.
TOLD: Final = frozenset({"namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes"})
BIASED: Final = {"Conv": 2, "ConvTranspose": 2}
"""Operators whose bias is an input that may be left away, and which one."""


def part_names(model: ir.Model) -> None:
    """Rename what has another value's name: initializers where an input has it, results where an initializer has it.

    A parameter may be called as an argument of the forward is, or `val_7`, as the exporter calls what it computes.
    """
    names = Names(model)
    inputs = {value.name for value in model.graph.inputs}
    for value in list(model.graph.initializers.values()):
        if value.name in inputs and not value.is_graph_input():
            value.name = names.free(str(value.name))
    held = {name for graph in model.graphs() for name in graph.initializers}
    for graph in model.graphs():
        for value in (output for node in graph for output in node.outputs):
            if value.name in held:
                value.name = names.free(value.name)


def forget_notes(model: ir.Model) -> None:
    """Remove the exporter's notes on values, and those on nodes that are not for a reader."""
    model.graph.metadata_props.clear()
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            keep_notes(value, {KEY})
        for node in graph:
            keep_notes(node, TOLD)
            for value in node.outputs:
                keep_notes(value, set())


def keep_notes(owner: ir.Value | ir.Node, keys: set[str] | frozenset[str]) -> None:
    """Remove the notes under other keys, and what refers to the exporter's own graph."""
    owner.meta.clear()
    for key in list(owner.metadata_props):
        if key not in keys:
            del owner.metadata_props[key]


def bypass_copies(model: ir.Model) -> None:
    """Use what an Identity copies instead of the copy: a dropout that does nothing, a parameter that was cloned."""
    for graph in model.graphs():
        for node in graph:
            source = node.inputs[0] if node.op_type == "Identity" and not node.domain else None
            if source is not None and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(source)
                graph.remove(node, safe=True)


def drop_zero_biases(model: ir.Model) -> None:
    """Leave the biases away that a module does not have, and for which the exporter wrote zeros."""
    for graph in model.graphs():
        for node in graph:
            place = BIASED.get(node.op_type) if not node.domain else None
            if place is not None and place < len(node.inputs) and is_invented_zero(node.inputs[place]):
                node.resize_inputs(place)
    remove_dead(model)


def is_invented_zero(value: ir.Value | None) -> bool:
    """Tell whether a value is constant, zero, and no parameter."""
    tensor = known(value)
    return tensor is not None and value is not None and provenance(value) is None and not tensor.numpy().any()
