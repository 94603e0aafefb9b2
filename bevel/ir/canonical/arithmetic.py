"""Shape arithmetic that states sizes gets one use each, and so do tensors of one number repeated.

Exporters compute `[batch, sequence, 12, 64]` once and reshape by it in all blocks. Its constants are sizes of tensors:
were they shared, no block could have other sizes than the rest. The same goes for the zeros that recurrent layers start
from. Copies that still are alike become one again when the model is saved.
"""

from collections.abc import Hashable
from itertools import islice
from typing import Final

import onnx_ir as ir

from bevel.ir.canonical.constants import known
from bevel.ir.canonical.sharing import ORIGIN
from bevel.ir.names import free_names, value_names

# Operators through which sizes flow from the first input only, and those that combine all their inputs.
CARRYING: Final = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
COMBINING: Final = frozenset({"Add", "Concat", "Div", "Equal", "Max", "Min", "Mul", "Neg", "Sub", "Where"})

SIZE_TYPES: Final = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


def separate_arithmetic(model: ir.Model) -> None:
    """Give each use of shape arithmetic that states a size its own copy, last results first.

    Copies are at most as many as nodes: beyond that (no exporter comes near) the rest stays shared.
    """
    names = value_names(model)
    for graph in list(model.graphs()):
        budget = len(graph)
        for node in reversed(stating_nodes(graph)):
            needed = len(node.outputs[0].uses()) - (not node.outputs[0].is_graph_output())
            if needed <= budget:
                budget -= max(0, needed)
                separate_node(node, names)


def stating_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Give the nodes whose result is a short list of sizes, some of them constant, or a fill of such, in order."""
    stating: dict[ir.Node, None] = {}
    for node in graph:
        inputs = node.inputs[:1] if node.op_type in CARRYING else node.inputs
        if is_fill(node) or (is_arithmetic(node) and any(states_size(value, stating) for value in inputs)):
            stating[node] = None
    return list(stating)


def is_fill(node: ir.Node) -> bool:
    """Tell whether a node repeats one constant number."""
    if node.domain != "" or node.op_type not in ("ConstantOfShape", "Expand"):
        return False
    number = known(node.inputs[0])
    return node.op_type == "ConstantOfShape" or (number is not None and number.size == 1)


def is_arithmetic(node: ir.Node) -> bool:
    """Tell whether a node computes one integer or a list of a known number of them from others."""
    if node.domain != "" or node.op_type not in CARRYING | COMBINING or len(node.outputs) != 1:
        return False
    output = node.outputs[0]
    return (
        output.dtype in SIZE_TYPES and output.shape is not None and output.shape.is_static() and len(output.shape) < 2
    )


def states_size(value: ir.Value | None, stating: dict[ir.Node, None]) -> bool:
    """Tell whether a value is a constant, or computed from one."""
    return value is not None and (known(value) is not None or value.producer() in stating)


def separate_node(node: ir.Node, names: set[str]) -> None:
    """Leave the first use (or the graph output) with the original, give every other use a copy right after it."""
    output, graph = node.outputs[0], node.graph
    assert output.name and graph is not None
    others = tuple(output.uses())[0 if output.is_graph_output() else 1 :]
    for (user, index), name in zip(others, islice(free_names(output.name, names), len(others)), strict=True):
        copy = copy_of(node, name)
        graph.insert_after(node, copy)
        user.replace_input_with(index, copy.outputs[0])


def copy_of(node: ir.Node, name: str) -> ir.Node:
    """Make the same node under another name, which remembers where it came from."""
    output = ir.Value(name=name, shape=node.outputs[0].shape, type=node.outputs[0].type)
    copy = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        list(node.attributes.values()),
        outputs=[output],
        name=name if node.name else None,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    copy.meta[ORIGIN] = node.meta.setdefault(ORIGIN, node.outputs[0].name)
    return copy


def merge_arithmetic(model: ir.Model) -> None:
    """Make nodes one again that were separated and still compute the same from the same."""
    for graph in list(model.graphs()):
        first: dict[Hashable, ir.Node] = {}
        for node in graph:
            if ORIGIN not in node.meta:
                continue
            kept = first.setdefault(identity(node), node)
            if kept is not node and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(kept.outputs[0])
                graph.remove(node, safe=True)


def identity(node: ir.Node) -> Hashable:
    """Give what two copies must have in common to be one."""
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    return node.meta[ORIGIN], node.op_type, tuple(map(id, node.inputs)), tuple(attributes)
