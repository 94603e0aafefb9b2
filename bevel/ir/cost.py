"""What a model costs: parameters, bytes, multiply-accumulates.

>>> Cost(parameters=10, bytes=40, macs=100).macs
100
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

INDEX_TYPES = {
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
    ir.DataType.BOOL,
    ir.DataType.STRING,
}


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
    parameters = sum(tensor.size for tensor in tensors if tensor.dtype not in INDEX_TYPES)
    counts = [macs(node) for graph in model.graphs() for node in graph if _known(node)]
    known = [count for count in counts if count is not None]
    return Cost(parameters, sum(map(_bytes, tensors)), sum(known), len(counts) - len(known))


def macs(node: ir.Node) -> int | None:
    """Return the multiply-accumulates of one node; None when its shapes do not say."""
    if not _known(node):
        return 0
    try:
        return FORMULAS[node.op_type](node)
    except UnknownShape:
        return None


class UnknownShape(LookupError):
    """A value has no shape, or fewer axes than its operator needs."""


def _tensors(graph: ir.Graph) -> list[ir.TensorProtocol]:
    return [value.const_value for value in graph.initializers.values() if value.const_value is not None]


def _bytes(tensor: ir.TensorProtocol) -> int:
    if isinstance(tensor, ir.StringTensor):
        return sum(map(len, tensor.string_data()))
    return tensor.nbytes


def _known(node: ir.Node) -> bool:
    return node.op_type in FORMULAS


def _shape(value: ir.Value | None, rank: int = 1) -> tuple[int, ...]:
    if value is None or value.shape is None or len(value.shape) < rank:
        raise UnknownShape
    return tuple(dim if isinstance(dim, int) else 1 for dim in value.shape)


def _input(node: ir.Node, number: int, rank: int = 1) -> tuple[int, ...]:
    return _shape(node.inputs[number] if number < len(node.inputs) else None, rank)


def _output(node: ir.Node, rank: int = 0) -> int:
    return prod(_shape(node.outputs[0], rank))


def _conv(weight: int) -> Callable[[ir.Node], int]:
    # each output element sums over (input channels of its group) x (taps) = all weights of one output channel
    return lambda node: _output(node) * prod(_input(node, weight, 2)[1:])


def _conv_transpose(node: ir.Node) -> int:
    # each input element is spread by all weights of its input channel
    return prod(_input(node, 0)) * prod(_input(node, 1, 2)[1:])


def _matmul(left: int = 0) -> Callable[[ir.Node], int]:
    return lambda node: _output(node) * _input(node, left)[-1]


def _gemm(node: ir.Node) -> int:
    rows, columns = _input(node, 0, 2)[:2]
    return _output(node) * (rows if node.attributes.get_int("transA", 0) else columns)


def _einsum(node: ir.Node) -> int:
    left = node.attributes.get_string("equation", "").split("->")[0].replace(" ", "")
    if "." in left or len(left.split(",")) != len(node.inputs):
        raise UnknownShape
    labels = [zip(term, _input(node, number, len(term)), strict=False) for number, term in enumerate(left.split(","))]
    sizes = {label: size for term in labels for label, size in term}
    return prod(sizes.values()) if len(node.inputs) > 1 else 0


def _attention(node: ir.Node) -> int:
    # q k^T and p v, each queries x keys x width; the width is that of all query heads together
    query, key = _input(node, 0, 3), _input(node, 1, 3)
    keys = key[-2]
    return 2 * prod(query) * keys


def _packed_attention(node: ir.Node) -> int:
    # com.microsoft.Attention: its input projection, then attention over as many keys as queries
    rows, length = prod(_input(node, 0, 3)[:-1]), _input(node, 0, 3)[1]
    weight = _input(node, 1, 2)
    return rows * prod(weight) + 2 * rows * length * weight[1] // 3


def _recurrent(node: ir.Node) -> int:
    # every step multiplies all input and all recurrent weights, all directions
    steps = prod(_input(node, 0, 3)[:2])
    return steps * (prod(_input(node, 1, 3)) + prod(_input(node, 2, 3)))


# The operators that multiply matrices, and how much each multiplies.
FORMULAS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "NhwcFusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "DeformConv": _conv(1),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul(),
    "FusedMatMul": _matmul(),
    "MatMulInteger": _matmul(),
    "QLinearMatMul": _matmul(),
    "MatMulNBits": _matmul(),
    "DynamicQuantizeMatMul": _matmul(),
    "MatMulIntegerToFloat": _matmul(),
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "Einsum": _einsum,
    "Attention": lambda node: _packed_attention(node) if node.domain else _attention(node),
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
