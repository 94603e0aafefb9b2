"""Small graphs of operators that no conformance test covers, with what their dimensions allow."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

Array = np.ndarray[Any, Any]

_TYPES = {"float32": "float", "bool": "bool"}


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(floats(*shape)) + np.float32(0.1)


def octets(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(0, 255, shape).astype(np.uint8)


def below(high: int, *shape: int, dtype: type = np.int64) -> Array:
    return (np.arange(prod(shape)) * 7 % high).reshape(shape).astype(dtype)


def whole(*numbers: Any, dtype: type = np.int64) -> Array:
    return np.array(numbers, dtype)


@dataclass(frozen=True)
class Case:
    """A graph as text, its feed and weights, and how many dimensions allow each edit."""

    name: str
    text: str
    feed: dict[str, Array]
    weights: dict[str, Any]
    permuted: int
    selected: int
    outputs: tuple[str, ...] = ("y",)
    opset: int = field(default=21)

    @property
    def model(self) -> ir.Model:
        inputs = ", ".join(f"{_type(array)}{list(array.shape)} {name}" for name, array in self.feed.items())
        outputs = ", ".join(name if " " in name else f"float[] {name}" for name in self.outputs)
        header = f'<ir_version: 10, opset_import: ["": {self.opset}, "com.microsoft": 1]>'
        text = f"{header} g ({inputs}) => ({outputs}) {{ {self.text.replace('ms.', 'com.microsoft.')} }}"
        model = onnx.parser.parse_model(text)
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in self.weights.items()
        )
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        return ir.from_proto(model)

    def __str__(self) -> str:
        return self.name


def _type(array: Array) -> str:
    return _TYPES.get(str(array.dtype), str(array.dtype))


ACTIVATIONS = (
    Case("BiasGelu", "y = ms.BiasGelu(x, b)", {"x": floats(2, 3, 4)}, {"b": floats(4)}, 3, 3),
    Case("FastGelu", "y = ms.FastGelu(x, b)", {"x": floats(2, 3, 4)}, {"b": floats(4)}, 3, 3),
    Case("FastGelu-plain", "y = ms.FastGelu(x)", {"x": floats(2, 3, 4)}, {}, 3, 3),
    Case("QuickGelu", "y = ms.QuickGelu(x)", {"x": floats(2, 3, 4)}, {}, 3, 3),
    Case("Gelu", "y = ms.Gelu(x)", {"x": floats(2, 3, 4)}, {}, 3, 3),
)

_X234 = {"x": floats(2, 3, 4)}
_NORM = {"g": floats(4), "b": floats(4, seed=1)}
_IDS = {
    "i": below(9, 2, 3, dtype=np.int32),
    "s": below(2, 2, 3, dtype=np.int32),
    "k": whole([1, 1, 0], [1, 1, 1], dtype=np.int32),
}
NORMALISATIONS = (
    # A gain of the input's own shape: what an export makes of a normalisation without one.
    Case("RMSNormalization-spread", "y = RMSNormalization(x, h)", _X234, {"h": floats(2, 3, 4)}, 3, 2, opset=23),
    Case("LayerNormalization-spread", "y = LayerNormalization(x, h)", _X234, {"h": floats(1, 3, 4)}, 3, 2),
    Case("SimplifiedLayerNormalization", "y = SimplifiedLayerNormalization <axis = -1> (x, g)", _X234, _NORM, 3, 2),
    Case(
        "SkipLayerNormalization",
        "y, , , s = ms.SkipLayerNormalization(x, z, g, b, c)",
        {**_X234, "z": floats(2, 3, 4, seed=1)},
        {**_NORM, "c": floats(4, seed=2)},
        3,
        2,
        ("y", "s"),
    ),
    Case(
        "SkipLayerNormalization-broadcast",
        "y = ms.SkipLayerNormalization(x, z, g)",
        {**_X234, "z": floats(3, 4)},
        {"g": floats(4)},
        3,
        2,
    ),
    Case(
        "SkipSimplifiedLayerNormalization",
        "y, , , s = ms.SkipSimplifiedLayerNormalization(x, z, g, b)",
        {**_X234, "z": floats(2, 3, 4, seed=1)},
        _NORM,
        3,
        2,
        ("y", "s"),
    ),
    Case(
        "EmbedLayerNormalization",
        "y, m, e = ms.EmbedLayerNormalization(i, s, w, p, t, g, b, k)",
        _IDS,
        {"w": floats(9, 4), "p": floats(5, 4), "t": floats(2, 4), **_NORM},
        2,
        1,
        ("y", "int32[] m", "e"),
    ),
    Case(
        "QEmbedLayerNormalization",
        "y, m = ms.QEmbedLayerNormalization"
        "(i, s, w, p, t, g, b, k, scale, scale, scale, scale, scale, zero, zero, zero, zero, zero)",
        _IDS,
        {
            "w": octets(9, 4),
            "p": octets(5, 4),
            "t": octets(2, 4),
            "g": octets(4),
            "b": octets(4, seed=1),
            "scale": np.float32(0.02),
            "zero": np.uint8(128),
        },
        2,
        1,
        ("y", "int32[] m"),
    ),
)

PRODUCTS = (
    Case("FusedMatMul", "y = ms.FusedMatMul <transB = 1> (x, w)", _X234, {"w": floats(5, 4)}, 4, 4),
    Case("FusedMatMul-A", "y = ms.FusedMatMul <transA = 1> (x, w)", {"x": floats(2, 4, 3)}, {"w": floats(4, 5)}, 4, 4),
    Case(
        "FusedMatMul-batch",
        "y = ms.FusedMatMul <transBatchA = 1, transA = 1, transBatchB = 1, transB = 1> (x, w)",
        {"x": floats(4, 2, 6, 3)},
        {"w": floats(5, 2, 6, 4)},
        5,
        5,
    ),
    Case(
        "FusedGemm",
        'y = ms.FusedGemm <activation = "Relu", transB = 1> (x, w, b)',
        {"x": floats(3, 4)},
        {"w": floats(5, 4), "b": floats(5)},
        3,
        3,
    ),
    Case(
        "FusedConv",
        'y = ms.FusedConv <activation = "Relu", group = 2, pads = [1, 1, 1, 1]> (x, w, b, z)',
        {"x": floats(2, 4, 5, 5), "z": floats(2, 6, 5, 5)},
        {"w": floats(6, 2, 3, 3), "b": floats(6)},
        4,
        4,
    ),
    Case(
        "DynamicQuantizeMatMul",
        "y = ms.DynamicQuantizeMatMul(x, w, s, z, b)",
        _X234,
        {"w": octets(4, 5), "s": positive(5), "z": octets(5), "b": floats(5)},
        4,
        1,
    ),
    Case(
        "MatMulIntegerToFloat",
        "y = ms.MatMulIntegerToFloat(x, w, a, s, p, z, b)",
        {"x": octets(2, 3, 4)},
        {
            "w": octets(4, 5),
            "a": np.float32(0.1),
            "s": positive(5),
            "p": np.uint8(3),
            "z": octets(5),
            "b": floats(5),
        },
        4,
        3,
    ),
    Case(
        "QGemm",
        "y = ms.QGemm <transB = 1> (x, a, p, w, s, z, c)",
        {"x": octets(3, 4)},
        {
            "w": octets(5, 4),
            "a": np.float32(0.1),
            "s": positive(5),
            "p": np.uint8(3),
            "z": octets(5),
            "c": below(9, 5, dtype=np.int32),
        },
        3,
        2,
    ),
)

_NBITS = "y = ms.MatMulNBits <K = 32, N = 6, bits = 4, block_size = 16>"
_X32 = {"x": floats(2, 3, 32)}
_B4 = {"w": octets(6, 2, 8), "s": floats(6, 2)}
PACKED = (
    Case("MatMulNBits", f"{_NBITS} (x, w, s)", _X32, _B4, 4, 4),
    Case("MatMulNBits-zero", f"{_NBITS} (x, w, s, z, , b)", _X32, {**_B4, "z": octets(6, 1), "b": floats(6)}, 3, 3),
    Case("MatMulNBits-float-zero", f"{_NBITS} (x, w, s, z)", _X32, {**_B4, "z": floats(6, 2, seed=1)}, 4, 4),
    Case(
        "MatMulNBits-flat",
        f"{_NBITS} (x, w, s, z)",
        _X32,
        {"w": octets(6, 2, 8), "s": floats(12), "z": octets(6)},
        3,
        3,
    ),
    Case("MatMulNBits-ragged", f"{_NBITS.replace('32', '20')} (x, w, s)", {"x": floats(2, 3, 20)}, _B4, 3, 3),
    Case(
        "MatMulBnb4",
        "y = ms.MatMulBnb4 <K = 32, N = 6, block_size = 32, quant_type = 1> (x, w, s)",
        _X32,
        {"w": octets(96), "s": floats(6)},
        2,
        2,
    ),
    Case(
        "GatherBlockQuantized",
        "y = ms.GatherBlockQuantized <block_size = 16, gather_axis = 0, quantize_axis = 1, bits = 4> (w, i, s)",
        {"i": below(9, 2, 3)},
        {"w": octets(9, 16), "s": floats(9, 2)},
        3,
        3,
    ),
    Case(
        "GatherBlockQuantized-zero",
        "y = ms.GatherBlockQuantized <block_size = 16, gather_axis = 0, quantize_axis = 1, bits = 4> (w, i, s, z)",
        {"i": below(9, 2, 3)},
        {"w": octets(9, 16), "s": floats(9, 2), "z": octets(9, 1)},
        2,
        2,
    ),
)

_SCALED = {
    "a": np.float32(0.1),
    "p": np.uint8(3),
    "b": np.float32(0.2),
    "q": np.uint8(5),
    "c": np.float32(40),
    "r": np.uint8(120),
}
_OCTETS = {"x": octets(2, 3, 4)}
_CONV = {
    **_SCALED,
    "w": octets(6, 2, 3, 3),
    "s": positive(6),
    "z": np.full(6, 99, np.uint8),
    "d": below(99, 6, dtype=np.int32),
}
LINEAR_QUANTIZED = (
    Case(
        "QLinearAdd",
        "y = ms.QLinearAdd(x, a, p, w, b, q, b, q)",
        _OCTETS,
        {**_SCALED, "w": octets(3, 1)},
        3,
        3,
        ("uint8[] y",),
    ),
    Case("QLinearSigmoid", "y = ms.QLinearSigmoid(x, a, p, b, q)", _OCTETS, _SCALED, 3, 3, ("uint8[] y",)),
    Case(
        "QLinearSoftmax",
        "y = ms.QLinearSoftmax <axis = -1, opset = 13> (x, a, p, e, o)",
        _OCTETS,
        {**_SCALED, "e": np.float32(1 / 256), "o": np.uint8(0)},
        3,
        2,
        ("uint8[] y",),
    ),
    Case(
        "QLinearConcat",
        "y = ms.QLinearConcat <axis = 1> (a, p, x, b, q, z, a, p)",
        {**_OCTETS, "z": octets(2, 5, 4)},
        _SCALED,
        4,
        4,
        ("uint8[] y",),
    ),
    Case(
        "QLinearGlobalAveragePool",
        "y = ms.QLinearGlobalAveragePool <channels_last = 1> (x, a, p, a, p)",
        {"x": octets(2, 4, 4, 3)},
        _SCALED,
        4,
        2,
        ("uint8[] y",),
    ),
    Case(
        "QLinearConv",
        "y = QLinearConv <group = 2> (x, a, p, w, s, z, c, r, d)",
        {"x": octets(2, 4, 5, 5)},
        _CONV,
        4,
        3,
        ("uint8[] y",),
    ),
    Case(
        "QLinearConv-channels-last",
        "y = ms.QLinearConv <group = 2, channels_last = 1> (x, a, p, w, s, z, c, r, d)",
        {"x": octets(2, 5, 5, 4)},
        _CONV,
        4,
        3,
        ("uint8[] y",),
    ),
)
