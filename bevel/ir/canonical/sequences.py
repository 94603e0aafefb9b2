"""Sequences that only carry the parts of one tensor become the parts: PyTorch writes `chunk` and `split` so."""

from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.constants import known
from bevel.ir.names import Names

# From here on, Split takes its sizes as an operand.
FIRST_OPSET: Final = 13


def open_sequences(model: ir.Model) -> bool:
    """Replace every SplitToSequence all of whose parts are taken at constant places by a Split; tell if any was."""
    if model.opset_imports.get("", 0) < FIRST_OPSET:
        return False
    nodes = [node for graph in model.graphs() for node in graph]
    cuts = [node for node in nodes if node.domain == "" and node.op_type == "SplitToSequence"]
    names = Names(model)
    return sum(open_sequence(node, names) for node in cuts) > 0


def open_sequence(node: ir.Node, names: Names) -> bool:
    """Replace one SplitToSequence and what takes its parts, if the sizes of the parts are known."""
    sizes = part_sizes(node)
    takers = [use.node for use in node.outputs[0].uses()]
    places = [taken_place(taker, len(sizes)) for taker in takers if taker.graph is node.graph]
    if not sizes or None in places or len(places) < len(takers) or node.outputs[0].is_graph_output():
        return False
    split = split_of(node, sizes, names)
    for taker, place in zip(takers, places, strict=True):
        assert place is not None and taker.graph is not None
        taker.outputs[0].replace_all_uses_with(split.outputs[place])
        taker.graph.remove(taker, safe=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return True


def split_of(node: ir.Node, sizes: list[int], names: Names) -> ir.Node:
    """Put a Split before a SplitToSequence."""
    graph, source, name = node.graph, node.inputs[0], node.outputs[0].name
    assert isinstance(graph, ir.Graph) and source is not None
    operand = ir.Value(
        name=names.free(f"{name}.sizes"),
        shape=ir.Shape([len(sizes)]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.array(sizes, np.int64)),
    )
    graph.register_initializer(operand)
    axis = node.attributes.get_int("axis", 0)
    split = ir.node("Split", [source, operand], {"axis": axis}, num_outputs=len(sizes), name=node.name)
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    for index, part in enumerate(split.outputs):
        part.name, part.type = names.free(f"{name}.{index}"), source.type
    return split


def part_sizes(node: ir.Node) -> list[int]:
    """Give the sizes of the parts, or nothing where they are not known or the cut axis goes away."""
    source, given = node.inputs[0], known(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or given is None:
        return []
    axis, rank = node.attributes.get_int("axis", 0), len(source.shape)
    size = source.shape[axis] if -rank <= axis < rank else None
    if not isinstance(size, int):
        return []
    content = given.numpy()
    if content.ndim == 0 and content > 0:
        return [min(int(content), size - start) for start in range(0, size, int(content))]
    return [int(part) for part in content.ravel()] if content.ndim == 1 and content.sum() == size else []


def taken_place(node: ir.Node, count: int) -> int | None:
    """Give which of `count` parts a SequenceAt takes, if it is one, says so, and gives it to other nodes only."""
    if node.op_type != "SequenceAt" or node.domain != "" or node.outputs[0].is_graph_output():
        return None
    place = known(node.inputs[1])
    if place is None or not -count <= int(place.numpy()) < count:
        return None
    return int(place.numpy()) % count
