"""com.microsoft's MoE and QMoE, whose weights are stacks among their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.passes.experts.writing import Writer
from bevel.passes.formats.packing import unpack
from bevel.passes.mixtures.chains import Unlike
from bevel.passes.mixtures.description import Activation, Expert, Mixture
from bevel.passes.mixtures.gating import Gating

Array = np.ndarray[Any, Any]

MICROSOFT: Final = "com.microsoft"
# Where weights, scales, constants and zero points of the first, second and third layer are among QMoE's inputs.
PACKED: Final = ((2, 3, 4, 11, "fc1"), (5, 6, 7, 12, "fc2"), (8, 9, 10, 13, "fc3"))
INTERLEAVED: Final = 1
END_TO_END: Final = 2


def is_mixture(node: ir.Node) -> bool:
    """Say whether a node is a mixture of experts by itself."""
    return node.domain == MICROSOFT and node.op_type in ("MoE", "QMoE")


def fused(model: ir.Model) -> Iterator[tuple[ir.Node, Mixture | Unlike]]:
    """Yield the nodes that are mixtures, and what they are, but for their gating, or why that cannot be said."""
    for node in model.graph:
        if is_mixture(node):
            try:
                yield node, _fused(node, model)
            except Unlike as why:
                yield node, why


def _fused(node: ir.Node, model: ir.Model) -> Mixture:
    given, logits = node.inputs[0], node.inputs[1]
    if given is None or logits is None or given.dtype != ir.DataType.FLOAT:
        raise Unlike("it computes in another type than FLOAT")
    layers = _packed(node) if node.op_type == "QMoE" else _plain(node)
    first, second, third = layers
    assert first is not None and second is not None
    gated = third is not None or _text(node, "activation_type", "relu") == "swiglu"
    ups = _halves(node, first) if third is None and gated else [first, *([third] if third is not None else [])]
    experts = [
        Expert(
            tuple(weight[expert].T for weight, _ in ups),
            tuple(bias[expert] for _, bias in ups),
            second[0][expert].T,
            second[1][expert],
        )
        for expert in range(len(second[0]))
    ]
    active = node.attributes.get_int("k", 1) or 1
    name = node.name or node.outputs[0].name or ""
    activation = _activation(node, model, gated=gated)
    made = (name, node.op_type, given, logits, node.outputs[0], active, Gating("one"), tuple(experts), activation)
    return Mixture(*made, rounded=node.op_type == "QMoE")


def _plain(node: ir.Node) -> list[tuple[Array, Array] | None]:
    """Return the weights `[experts, entries, entries]` and constants of the three layers."""
    found: list[tuple[Array, Array] | None] = []
    for place in (2, 4, 6):
        weight, bias = _array(node, place), _array(node, place + 1)
        found.append(None if weight is None else (weight, np.zeros(weight.shape[:2]) if bias is None else bias))
    return found


def _packed(node: ir.Node) -> list[tuple[Array, Array] | None]:
    """Return the same for weights in integers, dequantized."""
    if _text(node, "quant_type", "int") != "int":
        raise Unlike(f"its weights are of type {_text(node, 'quant_type', 'int')}")
    if any(index >= 15 and value is not None for index, value in enumerate(node.inputs)):
        raise Unlike("its weights have scales of scales")
    found: list[tuple[Array, Array] | None] = []
    for weight, scale, bias, zero, layer in PACKED:
        codes, scales = _array(node, weight), _array(node, scale)
        if codes is None or scales is None:
            found.append(None)
            continue
        bits = node.attributes.get_int(f"{layer}_expert_weight_bits", 0) or node.attributes.get_int(
            "expert_weight_bits", 4
        )
        restored = dequantized(codes, scales, _array(node, zero), bits or 4)
        constant = _array(node, bias)
        found.append((restored, np.zeros(restored.shape[:2]) if constant is None else constant))
    return found


def dequantized(codes: Array, scales: Array, zeros: Array | None, bits: int) -> Array:
    """Return weights `[experts, rows, entries]` of packed codes; a scale for each row, or for blocks of its entries.

    >>> codes, scales = np.array([[[0x8F]]], np.uint8), np.array([[0.5]])
    >>> dequantized(codes, scales, None, 4).tolist()
    [[[3.5, 0.0]]]
    """
    count = codes.shape[-1] * 8 // bits
    numbers = unpack(codes, bits, count).astype(np.float32)
    by_row = scales.ndim == 2
    blocks = 1 if by_row else scales.shape[-1]
    middle: Array | float = float(2 ** (bits - 1))
    if zeros is not None:
        points = unpack(zeros, bits, scales.shape[-1]).astype(np.float32)
        middle = points.reshape(*numbers.shape[:2], blocks, 1)
    parts = numbers.reshape(*numbers.shape[:2], blocks, -1)
    return np.asarray(((parts - middle) * scales.reshape(*numbers.shape[:2], blocks, 1)).reshape(numbers.shape))


def _halves(node: ir.Node, layer: tuple[Array, Array]) -> list[tuple[Array, Array]]:
    """Return the gate and what it multiplies, which stand side by side or one after the other."""
    fusion = node.attributes.get_int("swiglu_fusion", 0)
    if fusion == INTERLEAVED:
        return [(layer[0][:, start::2], layer[1][:, start::2]) for start in (0, 1)]
    if fusion == END_TO_END:
        half = layer[0].shape[1] // 2
        return [(layer[0][:, :half], layer[1][:, :half]), (layer[0][:, half:], layer[1][:, half:])]
    raise Unlike("its swiglu has nothing to multiply the gate by")


def _array(node: ir.Node, place: int) -> Array | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None:
        return None
    if value.const_value is None:
        raise Unlike(f"{value.name!r} is no weight")
    return value.const_value.numpy()


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes.get_string(name, default) or default


def _activation(node: ir.Node, model: ir.Model, *, gated: bool) -> Activation:
    """Return the operator's activation as standard nodes."""
    kind = _text(node, "activation_type", "relu")
    names = ["gate", "up"] if gated else ["gate"]
    inputs = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, None])) for name in names
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports=model.graph.opset_imports, name="activation")
    made = ir.Model(graph, ir_version=model.ir_version)
    write = Writer(graph, None, "activation", Names(made), ir.DataType.FLOAT)
    if kind == "swiglu":
        result = _swiglu(write, node, inputs)
    elif kind in BENDS:
        result = BENDS[kind](write, inputs[0])
        result = write("Mul", result, inputs[1]) if gated else result
    else:
        raise Unlike(f"its activation is {kind}")
    graph.outputs.append(result)
    return Activation(made)


def _silu(write: Writer, value: ir.Value) -> ir.Value:
    return write("Mul", value, write("Sigmoid", value))


def _gelu(write: Writer, value: ir.Value) -> ir.Value:
    """Write `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`."""
    square = write("Mul", value, value)
    inner = write(
        "Add", write("Mul", square, write.floats("cubic", np.array(0.044715))), write.floats("one", np.array(1))
    )
    bent = write("Tanh", write("Mul", write("Mul", value, inner), write.floats("root", np.array(np.sqrt(2 / np.pi)))))
    half = write("Mul", value, write.floats("half", np.array(0.5)))
    return write("Mul", half, write("Add", bent, write.floats("one", np.array(1))))


BENDS: Final[dict[str, Callable[[Writer, ir.Value], ir.Value]]] = {
    "relu": lambda write, value: write("Relu", value),
    "silu": _silu,
    "gelu": _gelu,
    "identity": lambda write, value: write("Identity", value),
}


def _swiglu(write: Writer, node: ir.Node, inputs: Sequence[ir.Value]) -> ir.Value:
    """Write `gate * sigmoid(alpha * gate) * (up + beta)`, both clamped to the limit."""
    gate, up = inputs
    limit = node.attributes.get_float("swiglu_limit", 0.0) or 0.0
    alpha, beta = node.attributes.get_float("activation_alpha", 1.0), node.attributes.get_float("activation_beta", 0.0)
    if limit and np.isfinite(limit):
        most = write.floats("limit", np.array(limit))
        gate = write("Min", gate, most)
        up = write("Max", write("Min", up, most), write.floats("least", np.array(-limit)))
    scaled = gate if alpha == 1.0 else write("Mul", gate, write.floats("alpha", np.array(alpha)))
    if beta:
        up = write("Add", up, write.floats("beta", np.array(beta)))
    return write("Mul", write("Mul", gate, write("Sigmoid", scaled)), up)
