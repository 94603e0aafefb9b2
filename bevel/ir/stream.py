"""Which axis of a stream holds its channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import onnx_ir as ir

# Operators that read channels along axis 1 of their first operand, and along its last axis.
FIRST: Final = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "AveragePool",
        "MaxPool",
        "GlobalAveragePool",
    }
)
LAST: Final = frozenset(
    {"MatMul", "Gemm", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "MatMulNBits"}
)


def channel_axis(stream: ir.Value, readers: Iterable[ir.Node]) -> int:
    """Return the axis of a stream's channels, as the first of its readers says that knows.

    `readers` are nodes in the order of the graph; transposes on the way are undone. Without one that knows it is axis 1
    of an image, the last axis of anything else.
    """
    rank = len(stream.shape) if stream.shape is not None else 0
    orders: dict[ir.Value, Sequence[int]] = {stream: range(rank)}
    for node in readers:
        order = next((orders[value] for value in node.inputs if value is not None and value in orders), None)
        if order is None:
            continue
        if node.op_type in FIRST and node.inputs[0] in orders and rank > 1:
            return order[1]
        if node.op_type in LAST and node.inputs[0] in orders:
            return order[-1]
        _follow(node, order, orders)
    return 1 if rank == 4 else max(rank - 1, 0)


def _follow(node: ir.Node, order: Sequence[int], orders: dict[ir.Value, Sequence[int]]) -> None:
    """Note in which order an output has the stream's axes, if it has all of them."""
    value, output = node.inputs[0], node.outputs[0]
    if node.op_type == "Transpose":
        turned = node.attributes.get_ints("perm", list(reversed(range(len(order)))))
        orders[output] = [order[place] for place in turned]
    elif value is not None and output.shape is not None and value.shape == output.shape and value in orders:
        orders[output] = order
