"""The layers that multiply an activation by a weight, and their weights as matrices.

Whatever the operator and its layout, a layer computes `y = W x + b` for every row `x` of its unfolded input: a token,
or the patch of pixels under a kernel. `matrices` gives `W` as `[groups, out, in]`, `array` puts matrices back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.content import content

Array = np.ndarray[Any, Any]

MATMUL, GEMM, CONV, CONV_TRANSPOSE = "MatMul", "Gemm", "Conv", "ConvTranspose"
KERNELS: Final = (CONV, CONV_TRANSPOSE)
# Every such node takes the activation first, then the weight, then the bias, if it can have one.
DATA, WEIGHT, BIAS = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Layer:
    """A node that multiplies an activation by an initializer.

    `in` counts the input channels of a group times the taps that are summed over, channel by channel; a transposed
    convolution sums over channels only, and its `out` has the taps.
    """

    node: ir.Node

    @property
    def data(self) -> ir.Value:
        """The activation."""
        return _value(self.node, DATA)

    @cached_property
    def weight(self) -> ir.Value:
        """The initializer it is multiplied by, as it is or transposed."""
        weight = _source(_value(self.node, WEIGHT))
        assert weight is not None
        return weight

    @property
    def names(self) -> tuple[str, str]:
        """What patterns match: the name of the weight, and that of the node."""
        return self.weight.name or "", self.node.name or ""

    @property
    def bias(self) -> ir.Value | None:
        """What the node itself adds, if anything."""
        return self.node.inputs[BIAS] if len(self.node.inputs) > BIAS else None

    @cached_property
    def groups(self) -> int:
        """How many independent matrices the weight holds."""
        return self.node.attributes.get_int("group", 1) if self.node.op_type in KERNELS else 1

    @property
    def taps(self) -> int:
        """How many places of its input a kernel sums over for each channel."""
        return prod(self.sizes[2:]) if self.node.op_type == CONV else 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of the kernel; empty for a matrix."""
        return self.sizes[2:]

    @property
    def in_axis(self) -> int:
        """The weight's axis of input channels."""
        if self.node.op_type in KERNELS:
            return int(self.node.op_type == CONV)
        return int(self.node.attributes.get_int("transB", 0) != 0) ^ (_value(self.node, WEIGHT) is not self.weight)

    @property
    def out_axis(self) -> int:
        """The weight's axis of output channels."""
        return 1 - self.in_axis

    @property
    def channel_axis(self) -> int:
        """The activation's axis of channels."""
        return 1 if self.node.op_type in KERNELS else -1

    def matrices(self, array: Array) -> Array:
        """Return the weight's array as `[groups, out, in]`."""
        if self.node.op_type == CONV:
            return array.reshape(self.groups, array.shape[0] // self.groups, -1)
        if self.node.op_type == CONV_TRANSPOSE:
            return array.reshape(1, array.shape[0], -1).transpose(0, 2, 1)
        return np.expand_dims(array if self.in_axis else array.T, 0)

    def content(self, tensor: ir.TensorProtocol | None = None) -> Array:
        """Return the weight, or one that it had before, as matrices of double precision, the caller's own."""
        with content(tensor or self.tensor) as array:
            return np.array(self.matrices(array), np.float64)

    def array(self, matrices: Array) -> Array:
        """Return `[groups, out, in]` in the weight's own layout; the way back of `matrices`."""
        groups, out, inner = matrices.shape
        if self.node.op_type == CONV:
            return matrices.reshape(groups * out, inner // self.taps, *self.kernel)
        if self.node.op_type == CONV_TRANSPOSE:
            return matrices.transpose(0, 2, 1).reshape(inner, -1, *self.kernel)
        first: Array = matrices[0]
        return first if self.in_axis else first.T

    @property
    def tensor(self) -> ir.TensorProtocol:
        """What the weight holds now."""
        tensor = self.weight.const_value
        assert tensor is not None
        return tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.tensor.shape.numpy())

    def put(self, matrices: Array) -> None:
        """Give the layer weights `[groups, out, in]`, rounded to the type it has."""
        hold(self.weight, self.array(matrices))


def rounded(tensor: ir.TensorProtocol, array: Array) -> Array:
    """Return an array as the type of a tensor holds it."""
    return np.ascontiguousarray(array).astype(tensor.dtype.numpy())


def hold(value: ir.Value, array: Array) -> None:
    """Let an initializer hold an array, rounded to the type it has."""
    tensor = value.const_value
    assert tensor is not None
    value.const_value = ir.Tensor(rounded(tensor, array), dtype=tensor.dtype, name=value.name)


def layers(model: ir.Model) -> list[Layer]:
    """Return the layers of the main graph, in its order.

    MatMul with a matrix on the right, Gemm, Conv (plain, grouped, depthwise) and ConvTranspose without groups; the
    weight is an initializer of floats, one at least.
    """
    return list(_layers(model))


def _layers(model: ir.Model) -> Iterator[Layer]:
    for node in model.graph:
        if not node.domain and node.op_type in (MATMUL, GEMM, CONV, CONV_TRANSPOSE) and _regular(node):
            yield Layer(node)


def _regular(node: ir.Node) -> bool:
    data, weight = node.inputs[DATA], _source(node.inputs[WEIGHT])
    tensor = None if weight is None else weight.const_value
    if data is None or _source(data) is not None or tensor is None or not tensor.dtype.is_floating_point():
        return False
    rank = len(tensor.shape)
    if 0 in tensor.shape:
        return False
    if node.op_type == GEMM and node.attributes.get_int("transA", 0) != 0:
        return False
    if node.op_type == CONV_TRANSPOSE and node.attributes.get_int("group", 1) != 1:
        return False
    return rank >= 3 if node.op_type in KERNELS else rank == 2


def _source(value: ir.Value | None) -> ir.Value | None:
    """Return the initializer that a value is, or is a matrix's transpose of; None if it is computed or fed."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Transpose" and not node.domain:
        value = node.inputs[0]
        if list(node.attributes.get_ints("perm", [1, 0])) != [1, 0]:
            return None
    return value if value is not None and value.is_initializer() and not value.is_graph_input() else None


def _value(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
