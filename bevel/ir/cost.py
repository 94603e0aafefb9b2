"""What a model costs: parameters, bytes, multiply-accumulates.

>>> Cost(parameters=10, bytes=40, macs=100).macs
100
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import onnx_ir as ir

INDEX_TYPES = {
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
    ir.DataType.BOOL,
    ir.DataType.STRING,
}
# How long the axes of a value are, symbolic ones as 1; None if its rank is not known.
Shapes: TypeAlias = Callable[[ir.Value], Sequence[int] | None]


@dataclass(frozen=True)
class Cost:
    """Parameters (elements of initializers, indices left out), their bytes (indices included), and MACs of one run.

    Symbolic sizes count as 1, so MACs are per sample and per token where the model is so. A body of Loop or Scan counts
    once. `uncounted` nodes multiply matrices, but their shapes are unknown.
    """

    parameters: int
    bytes: int
    macs: int
    uncounted: int = 0


def cost(model: ir.Model) -> Cost:
    """Return what `model` costs. A tensor that two initializers share counts once."""
    tensors = {id(tensor): tensor for graph in model.graphs() for tensor in _tensors(graph)}.values()
    parameters = sum(tensor.size for tensor in tensors if is_parameter(tensor))
    counts = [macs(node) for graph in model.graphs() for node in graph if multiplies(node)]
    known = [count for count in counts if count is not None]
    return Cost(parameters, sum(map(size_in_bytes, tensors)), sum(known), len(counts) - len(known))


def recorded(value: ir.Value) -> Sequence[int] | None:
    """Return how long the axes of a value are as the model says."""
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else 1 for dim in value.shape]


def macs(node: ir.Node, shapes: Shapes = recorded) -> int | None:
    """Return the multiply-accumulates of one node; None when its shapes do not say."""
    if not multiplies(node):
        return 0
    try:
        return FORMULAS[node.op_type](_Sizes(node, shapes))
    except UnknownShape:
        return None


def multiplies(node: ir.Node) -> bool:
    """Say whether a node multiplies matrices."""
    return node.op_type in FORMULAS


def is_parameter(tensor: ir.TensorProtocol) -> bool:
    """Say whether a tensor holds weights rather than indices."""
    return tensor.dtype not in INDEX_TYPES


def size_in_bytes(tensor: ir.TensorProtocol) -> int:
    """Return how many bytes the content of a tensor takes."""
    if isinstance(tensor, ir.StringTensor):
        return sum(map(len, tensor.string_data()))
    return tensor.nbytes


class UnknownShape(LookupError):
    """A value has no shape, or fewer axes than its operator needs."""


def _tensors(graph: ir.Graph) -> list[ir.TensorProtocol]:
    return [value.const_value for value in graph.initializers.values() if value.const_value is not None]


@dataclass(frozen=True)
class _Sizes:
    """A node and how long the axes of its inputs and outputs are."""

    node: ir.Node
    shapes: Shapes

    def input(self, number: int, rank: int = 1) -> Sequence[int]:
        """Return the sizes of an input, which must have so many axes at least."""
        return self._of(self.node.inputs[number] if number < len(self.node.inputs) else None, rank)

    def output(self) -> int:
        """Return how many elements the output has."""
        return prod(self._of(self.node.outputs[0], 0))

    def _of(self, value: ir.Value | None, rank: int) -> Sequence[int]:
        shape = None if value is None else self.shapes(value)
        if shape is None or len(shape) < rank:
            raise UnknownShape
        return shape


Formula: TypeAlias = Callable[[_Sizes], int]


def _conv(weight: int) -> Formula:
    # each output element sums over (input channels of its group) x (taps) = all weights of one output channel
    return lambda sizes: sizes.output() * prod(sizes.input(weight, 2)[1:])


def _conv_transpose(sizes: _Sizes) -> int:
    # each input element is spread by all weights of its input channel
    return prod(sizes.input(0, 0)) * prod(sizes.input(1, 2)[1:])


def _matmul(sizes: _Sizes) -> int:
    return sizes.output() * sizes.input(0)[-1]


def _gemm(sizes: _Sizes) -> int:
    rows, columns = sizes.input(0, 2)[:2]
    return sizes.output() * (rows if sizes.node.attributes.get_int("transA", 0) else columns)


def _einsum(sizes: _Sizes) -> int:
    node = sizes.node
    left = node.attributes.get_string("equation", "").split("->")[0].replace(" ", "")
    if "." in left or len(left.split(",")) != len(node.inputs):
        raise UnknownShape
    labels = [zip(term, sizes.input(number, len(term)), strict=False) for number, term in enumerate(left.split(","))]
    lengths = {label: size for term in labels for label, size in term}
    return prod(lengths.values()) if len(node.inputs) > 1 else 0


def _attention(sizes: _Sizes) -> int:
    # q k^T and p v, each queries x keys x width; the width is that of all query heads together
    query, key = sizes.input(0, 3), sizes.input(1, 3)
    return 2 * prod(query) * key[-2]


def _packed_attention(sizes: _Sizes) -> int:
    # com.microsoft.Attention: its input projection, then attention over as many keys as queries
    rows, length = prod(sizes.input(0, 3)[:-1]), sizes.input(0, 3)[1]
    weight = sizes.input(1, 2)
    return rows * prod(weight) + 2 * rows * length * weight[1] // 3


def _recurrent(sizes: _Sizes) -> int:
    # every step multiplies all input and all recurrent weights, all directions
    steps = prod(sizes.input(0, 3)[:2])
    return steps * (prod(sizes.input(1, 3)) + prod(sizes.input(2, 3)))


# The operators that multiply matrices, and how much each multiplies.
FORMULAS: dict[str, Formula] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "NhwcFusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "DeformConv": _conv(1),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "MatMulNBits": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "Einsum": _einsum,
    "Attention": lambda sizes: _packed_attention(sizes) if sizes.node.domain else _attention(sizes),
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
