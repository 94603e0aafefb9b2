"""The weights that can be quantized: of layers, recurrences and experts, and tables whose rows are gathered."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.content import content
from bevel.passes.fitting.layers import CONV_TRANSPOSE, WEIGHT, Layer, layers
from bevel.passes.formats.blocks import Axis
from bevel.passes.patterns import asked

Array = np.ndarray[Any, Any]

GATHER: Final = "Gather"
# Where operators that are no layers have their weights; the inputs of an output are along the last axis.
STACKS: Final = {
    ("", "LSTM"): (1, 2),
    ("", "GRU"): (1, 2),
    ("", "RNN"): (1, 2),
    ("com.microsoft", "MoE"): (2, 4, 6),
}
FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
# Weights that are no matrices have more axes.
RANK: Final = 2
# What passes a gathered row on as it is.
PASSING: Final = frozenset(
    {"Cast", "Concat", "Expand", "Identity", "Neg", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True, eq=False)
class Target:
    """A weight, the node that reads it, and the weight as a matrix of inputs and outputs.

    Of a weight that is read more than once, `others` are the other readers, who all take it the same way. The matrix
    is the weight's content in the order it is stored in: a kernel's rows are its filters, those of a stack of matrices
    all of theirs. What is asked once is remembered, for the node does not stay.
    """

    node: ir.Node
    weight: ir.Value
    layer: Layer | None = None
    others: tuple["Target", ...] = ()

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name or ""

    @cached_property
    def tensor(self) -> ir.TensorProtocol:
        """The weight's content."""
        tensor = self.weight.const_value
        assert tensor is not None
        return tensor

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.tensor.shape.numpy())

    @cached_property
    def stacked(self) -> bool:
        """Whether it is a stack of matrices: of directions, or of experts."""
        return (self.node.domain, self.node.op_type) in STACKS

    @cached_property
    def matrix_shape(self) -> tuple[int, int]:
        """The matrix's shape."""
        if self.stacked:
            return int(np.prod(self.shape[:-1])), self.shape[-1]
        return self.shape[0], int(np.prod(self.shape[1:]))

    @cached_property
    def in_axis(self) -> int:
        """The matrix's axis of inputs; of a table, that of a row's entries."""
        if self.layer is None or len(self.shape) > 2:
            return int(self.node.op_type != CONV_TRANSPOSE)
        return self.layer.in_axis

    def axis(self, along: str) -> Axis:
        """Return the matrix's axis that blocks run along; None where they run through the flat weight."""
        axes: dict[str, Axis] = {"in": self.in_axis, "out": 1 - self.in_axis, "flat": None, "both": "both"}
        return axes[along]

    @contextmanager
    def reading(self) -> Iterator[Array]:
        """Give the matrix in single precision; it must be neither kept nor written to."""
        with content(self.tensor) as array:
            yield np.ascontiguousarray(array, np.float32).reshape(self.matrix_shape)


def found(model: ir.Model, only: Sequence[str], skip: Sequence[str]) -> tuple[list[Target], dict[str, str]]:
    """Return the weights that can be quantized, in the order of the graph, and why others cannot, by their names.

    Patterns match the names of weights and of the nodes that read them.
    """
    targets: list[Target] = []
    left: dict[str, str] = {}
    readers: dict[ir.Value, list[Target]] = {}
    for target in _candidates(model):
        readers.setdefault(target.weight, []).append(target)
    for same in readers.values():
        if all(asked((target.name, target.node.name or ""), only, skip) for target in same):
            why = _objection(same)
            if why:
                left[same[0].name] = why
            else:
                targets.append(_together(same))
    return targets, left


def _together(readers: Sequence[Target]) -> Target:
    """Return all readers of a weight as one target: that of a table, if there is one, and the others."""
    first, *others = sorted(readers, key=lambda target: target.layer is not None)
    return replace(first, others=tuple(others))


def _candidates(model: ir.Model) -> Iterator[Target]:
    known = {layer.node: layer for layer in layers(model)}
    for node in model.graph:
        if node in known:
            yield Target(node, known[node].weight, known[node])
        elif node.op_type == GATHER and not node.domain:
            table = node.inputs[0]
            if table is not None and table.const_value is not None and _is_table(node, table):
                yield Target(node, table)
        else:
            yield from (Target(node, weight) for weight in _weights(node))


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the weights of a recurrence, of experts, and of a transposed convolution in groups."""
    places = (WEIGHT,) if node.op_type == CONV_TRANSPOSE else STACKS.get((node.domain, node.op_type), ())
    for weight in (node.inputs[place] for place in places if place < len(node.inputs)):
        if weight is not None and weight.is_initializer() and not weight.is_graph_input() and _is_stack(weight):
            yield weight


def _is_stack(weight: ir.Value) -> bool:
    tensor = weight.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > RANK


def _is_table(node: ir.Node, table: ir.Value) -> bool:
    tensor = table.const_value
    assert tensor is not None
    rows = len(tensor.shape) == 2 and node.attributes.get_int("axis", 0) in (0, -2)
    return rows and tensor.dtype.is_floating_point() and not table.is_graph_input()


def _objection(readers: Sequence[Target]) -> str:
    """Say why a weight cannot be quantized, if so."""
    first = readers[0]
    if first.weight.is_graph_output() or _reading(first.weight) != {target.node for target in readers}:
        return "used by what cannot be given codes"
    if len({target.in_axis for target in readers}) > 1:
        return "used as it is and transposed"
    if first.tensor.dtype not in FLOATS:
        return "quantized already"
    if any(target.node.op_type == GATHER and _multiplies(target.node) for target in readers):
        return "its rows multiply others, as angles do"
    return "" if first.tensor.size else "empty"


def _reading(value: ir.Value) -> set[ir.Node]:
    """Return the nodes that read a value, as it is or transposed."""
    nodes: set[ir.Node] = set()
    for node, _ in value.uses():
        turned = node.op_type == "Transpose" and not node.outputs[0].is_graph_output()
        nodes |= _reading(node.outputs[0]) if turned else {node}
    return nodes


def _multiplies(node: ir.Node) -> bool:
    """Say whether what a node gives only ever multiplies something that is computed: then it is no embedding."""
    users = list(node.outputs[0].uses())
    return bool(users) and all(
        _multiplies(user) if user.op_type in PASSING else _scales(user, node.outputs[0]) for user, _ in users
    )


def _scales(node: ir.Node, value: ir.Value) -> bool:
    """Say whether a node multiplies a value with another one that is computed."""
    others = [other for other in node.inputs if other is not None and other is not value]
    return node.op_type == "Mul" and bool(others) and all(other.const_value is None for other in others)
