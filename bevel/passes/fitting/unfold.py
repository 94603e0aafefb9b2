"""A layer's input as rows, and their sums and products: small models that run beside the one they measure."""

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.passes.fitting.layers import CONV, CONV_TRANSPOSE, Layer

Array = np.ndarray[Any, Any]

OPSET: Final = 18
IR_VERSION: Final = 9
# Attributes of a convolution that say which pixels are under its kernel.
GEOMETRY: Final = ("auto_pad", "dilations", "pads", "strides")


def geometry(layer: Layer) -> tuple[Any, ...]:
    """Return what decides how a layer unfolds its input: layers of the same geometry read the same rows."""
    if layer.node.op_type != CONV:
        return (layer.node.op_type == CONV_TRANSPOSE,)
    stated = (layer.node.attributes.get(name) for name in GEOMETRY)
    return (layer.groups, layer.kernel, *(str(attribute.value) for attribute in stated if attribute is not None))


def sums(layer: Layer) -> ir.Model:
    """Return a model from a layer's input `x` to `rows`, their `total` [groups, in] and `second` [groups, in, in]."""
    piece = _Piece()
    rows = piece.unfolded(layer, "x")
    piece.count(rows)
    piece.output("total", piece.node("ReduceSum", [rows, piece.constant([2])], keepdims=0))
    piece.output("second", piece.product(rows, rows))
    return piece.model()


def joint_sums(layer: Layer, small: Layer, groups: Sequence[int]) -> ir.Model:
    """Return a model that sums the rows of one layer (its input is `x`) and of what it was pruned to (`y`).

    `groups` are those of the first that are left. Outputs: `rows`, `total_x`, `total_y`, `second` of `y`, and `cross`,
    the rows of `x` times those of `y`.
    """
    piece = _Piece()
    x, y = piece.unfolded(layer, "x"), piece.unfolded(small, "y")
    if len(groups) != layer.groups:
        x = piece.node("Gather", [x, piece.constant(groups)], axis=0)
    piece.count(y)
    axes = piece.constant([2])
    piece.output("total_x", piece.node("ReduceSum", [x, axes], keepdims=0))
    piece.output("total_y", piece.node("ReduceSum", [y, axes], keepdims=0))
    piece.output("second", piece.product(y, y))
    piece.output("cross", piece.product(x, y))
    return piece.model()


class _Piece:
    """A graph in the making."""

    def __init__(self) -> None:
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def unfolded(self, layer: Layer, name: str) -> ir.Value:
        """Add an input that is a layer's, and return its rows as `[groups, in, rows]`."""
        rank = len(layer.kernel) + 2 if layer.kernel else None
        x = self._input(name, layer, rank)
        if rank is None:
            width = layer.sizes[layer.in_axis]
            flat = self.node("Reshape", [x, self.constant([-1, width])])
            return self.node("Unsqueeze", [self.node("Transpose", [flat], perm=[1, 0]), self.constant([0])])
        if layer.node.op_type == CONV:
            x = self._patches(x, layer)
        first = self.node("Transpose", [x], perm=[1, 0, *range(2, rank)])
        width = layer.sizes[1] * layer.taps if layer.node.op_type == CONV else layer.sizes[0]
        groups = layer.groups if layer.node.op_type == CONV else 1
        return self.node("Reshape", [first, self.constant([groups, width, -1])])

    def product(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """Sum the products of two sets of rows."""
        return self.node("MatMul", [left, self.node("Transpose", [right], perm=[0, 2, 1])])

    def count(self, rows: ir.Value) -> None:
        """Give out how many rows there are."""
        self.output("rows", self.node("Shape", [rows], start=2))

    def node(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        """Add a node and return its output."""
        node = ir.node(op_type, list(inputs), attributes or None)
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, content: Any) -> ir.Value:
        """Add a constant: integers, or an array."""
        array = content if isinstance(content, np.ndarray) else np.asarray(content, np.int64)
        tensor = ir.tensor(array, name=f"c{len(self.constants)}")
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.constants.append(value)
        return value

    def output(self, name: str, value: ir.Value) -> None:
        """Give a value out under a name."""
        value.name = name
        value.type = ir.TensorType(ir.DataType.INT64 if name == "rows" else ir.DataType.FLOAT)
        self.outputs.append(value)

    def model(self) -> ir.Model:
        """Return what was built."""
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": OPSET},
            name="moments",
        )
        return ir.Model(graph, ir_version=IR_VERSION)

    def _input(self, name: str, layer: Layer, rank: int | None) -> ir.Value:
        dtype = layer.data.dtype or ir.DataType.FLOAT
        shape = None if rank is None else ir.Shape([None] * rank)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
        self.inputs.append(value)
        return value if dtype is ir.DataType.FLOAT else self.node("Cast", [value], to=int(ir.DataType.FLOAT))

    def _patches(self, x: ir.Value, layer: Layer) -> ir.Value:
        """Lay the pixels under the kernel out as channels: a convolution with one kernel for each tap."""
        taps = prod(layer.kernel)
        channels = layer.sizes[1] * layer.groups
        kernels = np.tile(
            np.eye(taps, dtype=np.float32).reshape(taps, 1, *layer.kernel), (channels,) + (1,) * (len(layer.kernel) + 1)
        )
        patches = self.node("Conv", [x, self.constant(kernels)], group=channels)
        for name in GEOMETRY:
            if name in layer.node.attributes:
                self.nodes[-1].attributes.add(layer.node.attributes[name])
        return patches
