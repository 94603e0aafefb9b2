"""What ONNX Runtime has no fast form of in 8 bits, written as what it has: it computes the same."""

from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.fitting.shift import only_user

# Axes `[n, groups, channels, ...]` with the second and the third exchanged.
EXCHANGED: Final = (0, 2, 1)


def write_native(model: ir.Model) -> None:
    """Make sums of two an Add, and channel shuffles a Gather.

    ONNX Runtime adds in 8 bits by Add alone. Convolutions in 8 bits have their channels last; a shuffle by Reshape,
    Transpose and Reshape between them is transposed in five axes then, byte by byte, which takes longer than they do.
    """
    names = Names(model)
    for node in list(model.graph):
        if node.domain:
            continue
        if node.op_type == "Sum" and len(node.inputs) == 2:
            node.op_type = "Add"
        elif node.op_type == "Transpose":
            _gather(node, names)


def _gather(node: ir.Node, names: Names) -> None:
    """Put a Gather in the place of a channel shuffle whose Transpose is given; leave other nodes alone."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    apart, together = node.inputs[0].producer() if node.inputs[0] is not None else None, only_user(node)
    if apart is None or together is None or only_user(apart) is not node:
        return
    groups = _groups(apart, node, together)
    if groups is None:
        return
    order = np.arange(groups[0] * groups[1]).reshape(groups).T.reshape(-1)
    index = add_initializer(graph, f"{node.name}.order", ir.tensor(order), names)
    shuffled = ir.node("Gather", [apart.inputs[0], index], {"axis": 1}, name=names.free(f"{node.name}.shuffle"))
    graph.insert_before(together, shuffled)
    made, old = shuffled.outputs[0], together.outputs[0]
    made.type, made.shape, made.name = old.type, old.shape, old.name
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    for done in (together, node, apart):
        graph.remove(done, safe=True)


def _groups(apart: ir.Node, node: ir.Node, together: ir.Node) -> tuple[int, int] | None:
    """Return how many groups of how many channels three nodes shuffle, None if they do something else."""
    if any(each.op_type != "Reshape" or each.domain for each in (apart, together)):
        return None
    shapes = [value.shape for value in (apart.inputs[0], apart.outputs[0], together.outputs[0]) if value is not None]
    given, split, merged = (None if shape is None else tuple(shape.dims) for shape in shapes)
    if given is None or split is None or given != merged or len(split) != len(given) + 1:
        return None
    groups, channels = split[1:3]
    rest = split[:1] + split[3:] == given[:1] + given[2:]
    order = tuple(node.attributes.get_ints("perm", ()))
    exchanged = order == (*EXCHANGED, *range(3, len(split)))
    if not rest or not exchanged or not isinstance(groups, int) or not isinstance(channels, int):
        return None
    return (groups, channels) if groups * channels == given[1] else None
