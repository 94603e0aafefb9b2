"""Graphs of com.microsoft operators beside those of `tests/ir/contrib_cases.py`."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime

from tests.ir import contrib_cases as shared
from tests.ir.contrib_cases import Array, Case, below, floats, octets, positive, whole

# Sums of floats that are rounded to integers: another order of operations may end on the other side of a half.
ROUNDED_SUMS = ("QLinearGlobalAveragePool", "QLinearAdd-signed", "QLinearAveragePool")
TOLERANCE = 2e-5  # of single precision, over some ten operations


def case(name: str, text: str, feed: dict[str, Array], weights: dict[str, Any], *outputs: str, opset: int = 21) -> Case:
    return Case(name, text, feed, weights, 0, 0, outputs or ("y",), opset)


def runtime(case: Case) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = ir.to_proto(case.model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    return session.run(None, case.feed)


def close(got: Array, expected: Array, step: int = 0) -> bool:
    """Whether two arrays are one: integers up to some steps, floats within the tolerance."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if got.dtype.kind in "iu":
        return bool(np.abs(got.astype(int) - expected.astype(int)).max(initial=0) <= step)
    return bool(np.allclose(got, expected, TOLERANCE, TOLERANCE))


CASES = (*shared.ACTIVATIONS, *shared.NORMALISATIONS, *shared.PRODUCTS, *shared.PACKED, *shared.LINEAR_QUANTIZED)

B, S, N, H = 2, 3, 2, 4  # samples, positions, heads, width of a head
_X = {"x": floats(B, S, 6)}
_PROJECTION = {"w": floats(6, 3 * N * H), "b": floats(3 * N * H)}
_QKV = {name: floats(B, S, N * H, seed=place) for place, name in enumerate("qkv")}
_PAST = {"c": floats(B, N, 5, H, seed=4), "d": floats(B, N, 5, H, seed=5)}
_ATTENTION = f"ms.Attention <num_heads = {N}"
_HEADS = f"ms.MultiHeadAttention <num_heads = {N}"
PROJECTED = (
    case("Attention", f"y = {_ATTENTION}> (x, w, b)", _X, _PROJECTION),
    case("Attention-causal", f"y = {_ATTENTION}, unidirectional = 1, scale = 0.3> (x, w, b)", _X, _PROJECTION),
    case("Attention-lengths", f"y = {_ATTENTION}> (x, w, b, m)", {**_X, "m": whole(2, 3, dtype=np.int32)}, _PROJECTION),
    case(
        "Attention-ends",
        f"y = {_ATTENTION}> (x, w, b, m)",
        {**_X, "m": whole(3, 2, 1, 0, dtype=np.int32)},
        _PROJECTION,
    ),
    case(
        "Attention-keys",
        f"y = {_ATTENTION}> (x, w, b, m)",
        {**_X, "m": whole([1, 1, 0], [0, 0, 0], dtype=np.int32)},
        _PROJECTION,
    ),
    case(
        "Attention-pairs",
        f"y = {_ATTENTION}> (x, w, b, m, , a)",
        {**_X, "m": below(2, B, S, S, dtype=np.int32), "a": floats(B, N, S, S)},
        _PROJECTION,
    ),
    case(
        "Attention-past",
        f"y, p = {_ATTENTION}, unidirectional = 1> (x, w, b, , c)",
        {**_X, "c": floats(2, B, N, 5, H)},
        _PROJECTION,
        "y",
        "p",
    ),
    case(
        "Attention-sizes",
        f"y = {_ATTENTION}, qkv_hidden_sizes = [8, 8, 12]> (x, w, b)",
        _X,
        {"w": floats(6, 28), "b": floats(28)},
    ),
    case(
        "QAttention",
        f"y = ms.QAttention <num_heads = {N}> (x, w, b, s, t, m, z, u)",
        {"x": octets(B, S, 6), "m": whole(2, 3, dtype=np.int32)},
        {
            "w": octets(6, 24),
            "b": floats(24),
            "s": np.float32(0.02),
            "t": np.float32(0.01),
            "z": np.uint8(120),
            "u": np.uint8(130),
        },
    ),
)
MULTI_HEAD = (
    case("MultiHeadAttention", f"y = {_HEADS}> (q, k, v)", _QKV, {}),
    case("MultiHeadAttention-bias", f"y = {_HEADS}, unidirectional = 1> (q, k, v, b)", _QKV, {"b": floats(24)}),
    case(
        "MultiHeadAttention-mask",
        f"y = {_HEADS}> (q, k, v, , m, a)",
        {**_QKV, "m": whole([1, 1, 0], [1, 0, 0], dtype=np.int32), "a": floats(1, N, S, S)},
        {},
    ),
    case(
        "MultiHeadAttention-lengths",
        f"y = {_HEADS}> (q, k, v, , m)",
        {**_QKV, "m": whole(2, 3, dtype=np.int32)},
        {},
    ),
    case(
        "MultiHeadAttention-past",
        f"y, p, o = {_HEADS}> (q, k, v, b, , , c, d)",
        {**_QKV, **_PAST},
        {"b": floats(24)},
        *("y", "p", "o"),
    ),
    case(
        "MultiHeadAttention-cross",
        f"y = {_HEADS}> (q, c, d, b)",
        {"q": _QKV["q"], **_PAST},
        {"b": floats(24)},
    ),
    case(
        "MultiHeadAttention-scores",
        f"y, , , s = {_HEADS}> (q, k, v, , m)",
        {**_QKV, "m": whole(2, 3, dtype=np.int32)},
        {},
        *("y", "s"),
    ),
)
_ANGLES = {"cos": np.cos(floats(9, H // 2)), "sin": np.sin(floats(9, H // 2))}
_TURN = {"i": whole([0, 1, 2], [4, 5, 6])}
ROTATION = (
    case("RotaryEmbedding", "y = ms.RotaryEmbedding(x, i, cos, sin)", {"x": floats(B, S, 8), **_TURN}, _ANGLES),
    case("RotaryEmbedding-4d", "y = ms.RotaryEmbedding(x, i, cos, sin)", {"x": floats(B, N, S, H), **_TURN}, _ANGLES),
    case(
        "RotaryEmbedding-first",
        "y = ms.RotaryEmbedding <interleaved = 1> (x, i, cos, sin)",
        {"x": floats(B, S, 8), "i": whole(4)},
        _ANGLES,
    ),
    case(
        "RotaryEmbedding-part",
        "y = ms.RotaryEmbedding <num_heads = 2, rotary_embedding_dim = 4> (x, i, cos, sin)",
        {"x": floats(B, S, 12), **_TURN},
        _ANGLES,
    ),
)
_WIDE = 16
_GROUPED = {"q": floats(1, S, 4 * _WIDE), "k": floats(1, S, 2 * _WIDE, seed=1), "v": floats(1, S, 2 * _WIDE, seed=2)}
_CACHE = {"c": floats(1, 2, 5, _WIDE, seed=4), "d": floats(1, 2, 5, _WIDE, seed=5)}
_TURNS = {"cos": np.cos(floats(16, _WIDE // 2)), "sin": np.sin(floats(16, _WIDE // 2))}
_PROMPT = {"l": whole(S - 1, dtype=np.int32), "t": np.int32(S)}
_NEXT = {"l": whole(S + 4, dtype=np.int32), "t": np.int32(S + 5)}
_LATER = {**_GROUPED, **_CACHE}
# ONNX Runtime appends several tokens to a cache only for a single sample, and one token to each of several.
_ONE = {
    **{"q": floats(B, 1, 4 * _WIDE), "k": floats(B, 1, 2 * _WIDE, seed=1), "v": floats(B, 1, 2 * _WIDE, seed=2)},
    **{"c": floats(B, 2, 8, _WIDE, seed=4), "d": floats(B, 2, 8, _WIDE, seed=5)},
}


def grouped(name: str, options: str, operands: str, feed: dict[str, Array], weights: dict[str, Any]) -> Case:
    text = f"y, p, o = ms.GroupQueryAttention <num_heads = 4, kv_num_heads = 2{options}> ({operands})"
    return case(f"GroupQueryAttention{name}", text, feed, weights, "y", "p", "o")


_TURNED = "q, k, v, c, d, l, t, cos, sin"
GROUPED = (
    grouped("", "", "q, k, v, , , l, t", _GROUPED, _PROMPT),
    grouped("-bidirectional", ", causal = 0", "q, k, v, , , l, t", _GROUPED, _PROMPT),
    grouped("-past", "", "q, k, v, c, d, l, t", _LATER, _NEXT),
    grouped("-rotary", ", do_rotary = 1", _TURNED, _LATER, {**_NEXT, **_TURNS}),
    grouped(
        "-packed",
        ", do_rotary = 1, rotary_interleaved = 1, scale = 0.2",
        "q, , , , , l, t, cos, sin",
        {"q": floats(1, S, 8 * _WIDE)},
        {**_PROMPT, **_TURNS},
    ),
    grouped("-window", ", local_window_size = 4", "q, k, v, c, d, l, t", _LATER, _NEXT),
    grouped("-softcap", ", softcap = 2.0", "q, k, v, c, d, l, t", _LATER, _NEXT),
    grouped("-smooth", ", smooth_softmax = 1", "q, k, v, c, d, l, t", _LATER, _NEXT),
    grouped("-sink", "", "q, k, v, c, d, l, t, , , , , h", _LATER, {**_NEXT, "h": floats(4)}),
    grouped("-bias", "", "q, k, v, c, d, l, t, , , , a", {**_LATER, "a": floats(1, 1, S, S + 5)}, _NEXT),
    grouped(
        "-bias-softcap",
        ", softcap = 2.0, smooth_softmax = 1",
        "q, k, v, c, d, l, t, , , , a",
        {**_LATER, "a": floats(1, 4, S, S + 5)},
        _NEXT,
    ),
    grouped(
        "-positions",
        ", do_rotary = 1",
        f"{_TURNED}, i",
        {**_LATER, "i": whole([6, 7, 9])},
        {**_NEXT, **_TURNS},
    ),
    grouped(
        "-ragged",
        ", do_rotary = 1, local_window_size = 6",
        _TURNED,
        _ONE,
        {"l": whole(7, 4, dtype=np.int32), "t": np.int32(8), **_TURNS},
    ),
)


def coded(bits: int, kind: str, scale: Array, feed: dict[str, Array], weights: dict[str, Array]) -> Case:
    """Caches in codes of 8 bits, or of 4 in two halves of a byte."""
    kinds = f'do_rotary = 1, kv_cache_bit_width = {bits}, k_quant_type = "{kind}", v_quant_type = "{kind}"'
    heads = f"com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, {kinds}>"
    dtype, width = (np.int8, _WIDE) if bits == 8 else (np.uint8, _WIDE // 2)
    rng = np.random.default_rng(bits)
    past = {x: rng.integers(0, 120, (len(feed["q"]), 2, feed[x].shape[2], width)).astype(dtype) for x in "cd"}
    name, text = f"GroupQueryAttention-{bits}-{kind}", f"y, p, o = {heads} ({_TURNED}, , , , e, f)"
    outputs = "y", f"{past['c'].dtype}[] p", f"{past['c'].dtype}[] o"
    return case(name, text, {**feed, **past}, {**weights, **_TURNS, "e": scale, "f": scale / 2}, *outputs)


CODED = (
    coded(8, "PER_TENSOR", floats(1) / 50 + 0.05, _LATER, _NEXT),
    coded(8, "PER_CHANNEL", positive(1, 2, 1, _WIDE) / 20, _ONE, {"l": whole(7, 4, dtype=np.int32), "t": np.int32(8)}),
    coded(4, "PER_TENSOR", floats(1) / 5 + 0.5, _LATER, _NEXT),
    coded(4, "PER_CHANNEL", positive(1, 2, 1, _WIDE) / 2, _LATER, _NEXT),
)
CASES = (*CASES, *PROJECTED, *MULTI_HEAD, *ROTATION, *GROUPED, *CODED)

_MAP = {"x": floats(2, 4, 5, 5)}
_FILTERS = {"w": floats(6, 2, 3, 3), "b": floats(6)}
_SQUARE = {"x": floats(2, 3, 3)}
SMALL = (
    case("Trilu", "y = ms.Trilu <upper = 0> (x, k)", _SQUARE, {"k": whole(1)[0]}),
    case("Inverse", "y = ms.Inverse(x)", _SQUARE, {}),
    case("ExpandDims", "y = ms.ExpandDims(x, a)", _SQUARE, {"a": np.int32(1)}),
    case("CDist", 'y = ms.CDist <metric = "euclidean"> (x, z)', {"x": floats(3, 4), "z": floats(5, 4)}, {}),
    case(
        "Unique",
        "y, i, c = ms.Unique(x)",
        {"x": np.array([2, 1, 1, 3, 4, 3], np.float32)},
        {},
        *("y", "int64[] i", "int64[] c"),
    ),
    case("Pad", "y = ms.Pad(x, p, v)", {"x": floats(2, 3)}, {"p": whole(0, 2, 1, 0), "v": np.float32(7)}),
    case("Pad-row", 'y = ms.Pad <mode = "reflect"> (x, p)', {"x": floats(2, 3)}, {"p": whole([0, 2, 1, 0])}),
    case("GatherND", "y = ms.GatherND(x, i)", _SQUARE, {"i": whole([0, 1], [1, 2])}),
    case("Range", "y = ms.Range(a, b, c)", {}, {"a": np.float32(1), "b": np.float32(5), "c": np.float32(1.5)}),
    case(
        "TransposeMatMul", "y = ms.TransposeMatMul <alpha = 0.5, transA = 1> (x, z)", {**_SQUARE, "z": floats(3, 4)}, {}
    ),
    case("FusedMatMul-alpha", "y = ms.FusedMatMul <alpha = 0.5> (x, z)", {**_SQUARE, "z": floats(3, 4)}, {}),
    case(
        "FusedGemm-LeakyRelu",
        'y = ms.FusedGemm <activation = "LeakyRelu", activation_alpha = 0.2, alpha = 0.5, beta = 2.0> (x, w, b)',
        {"x": floats(3, 4)},
        {"w": floats(4, 5), "b": floats(5)},
    ),
    *(
        case(
            f"FusedConv-{name}",
            f'y = ms.FusedConv <activation = "{name}", activation_params = {list(given)}, group = 2> (x, w, b)',
            _MAP,
            _FILTERS,
        )
        for name, given in (("LeakyRelu", (0.2,)), ("Clip", (0.0, 1.5)), ("HardSigmoid", (0.3, 0.4)))
    ),
    *(
        case(
            f"FusedConv-{name}",
            f'y = ms.FusedConv <activation = "{name}", group = 2, strides = [2, 2]> (x, w)',
            _MAP,
            _FILTERS,
        )
        for name in ("Sigmoid", "Tanh")
    ),
    case(
        "NhwcMaxPool",
        "y = ms.NhwcMaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
        {"x": octets(2, 4, 4, 3)},
        {},
        "uint8[] y",
    ),
    case(
        "ConvTransposeWithDynamicPads",
        "y = ms.ConvTransposeWithDynamicPads <strides = [2, 2]> (x, w, p)",
        _MAP,
        {"w": floats(4, 3, 3, 3), "p": whole(1, 1, 1, 1)},
    ),
    case(
        "CausalConvWithState",
        'y, p = ms.CausalConvWithState <activation = "silu"> (x, w, b, s)',
        {"x": floats(2, 4, 6), "s": floats(2, 4, 2)},
        {"w": floats(4, 1, 3), "b": floats(4)},
        *("y", "p"),
    ),
    case(
        "LinearAttention",
        'y, p = ms.LinearAttention <q_num_heads = 2, kv_num_heads = 2, update_rule = "gated_delta"> (q, k, v, s, d, e)',
        {**_QKV, "s": floats(B, N, H, H), "d": -positive(B, S, N), "e": positive(B, S, N)},
        {},
        *("y", "p"),
    ),
    case(
        "QuantizeLinear",
        "y = ms.QuantizeLinear <axis = 1> (x, s, z)",
        {"x": floats(2, 3, 4)},
        {"s": positive(3), "z": whole(1, 2, 3, dtype=np.int16)},
        "int16[] y",
    ),
    case(
        "DequantizeLinear",
        "y = ms.DequantizeLinear <axis = 1> (x, s, z)",
        {"x": octets(2, 3, 4)},
        {"s": positive(3), "z": whole(1, 2, 3, dtype=np.uint8)},
    ),
)
_TOKENS = {"x": floats(5, 32), "r": 2 * floats(5, 4)}
_EXPERTS = {"w": floats(4, 12, 32), "b": floats(4, 12), "u": floats(4, 32, 12), "c": floats(4, 32)}
_PAIRED = {"w": floats(4, 24, 32), "b": floats(4, 24), "u": floats(4, 32, 12), "c": floats(4, 32)}
_LIMIT = "activation_alpha = 1.702, activation_beta = 1.0, swiglu_limit = 1.5"
_SWIGLU = 'activation_type = "swiglu", swiglu_fusion = 1, k = 2, normalize_routing_weights = 1'


def mixture(name: str, options: str, bits: int, feed: dict[str, Array], rest: str = "", **more: Array) -> Case:
    """A mixture of experts with weights of some bits, and gates beside the entries."""
    packed = {"w": octets(4, 64, 32 * bits // 8), "u": octets(4, 32, 32 * bits // 8), **more}
    text = f"y = ms.QMoE <{options}, expert_weight_bits = {bits}> (x, r, w, s, b, u, t, c{rest})"
    return case(f"QMoE-{name}", text, feed, {"b": floats(4, 64), "c": floats(4, 32), **packed})


_ROW_SCALES = {"s": positive(4, 64) / 64, "t": positive(4, 32) / 64}
_BLOCK_SCALES = {"s": positive(4, 64, 2) / 64, "t": positive(4, 32, 2) / 64}
MIXTURES = (
    *(
        case(f"MoE-{name}", f'y = ms.MoE <activation_type = "{name}", k = 2> (x, r, w, b, u, c)', _TOKENS, _EXPERTS)
        for name in ("relu", "gelu", "silu", "identity")
    ),
    case("MoE-swiglu", f"y = ms.MoE <{_SWIGLU}> (x, r, w, b, u, c)", _TOKENS, _PAIRED),
    case(
        "MoE-limit",
        f"y = ms.MoE <{_SWIGLU}, {_LIMIT}> (x, r, w, b, u, c)",
        _TOKENS,
        _PAIRED,
    ),
    *(mixture(f"{bits}-bits", _SWIGLU, bits, _TOKENS, **_ROW_SCALES) for bits in (2, 4, 8)),
    mixture("blocks", f"{_SWIGLU}, block_size = 16", 4, _TOKENS, **_BLOCK_SCALES),
    mixture("zeros", _SWIGLU, 4, _TOKENS, ", , , , z, o", **_ROW_SCALES, z=octets(4, 32), o=octets(4, 16)),
    mixture(
        "block-zeros",
        f"{_SWIGLU}, block_size = 16",
        2,
        _TOKENS,
        ", , , , z, o",
        **_BLOCK_SCALES,
        z=octets(4, 64, 1),
        o=octets(4, 32, 1),
    ),
    mixture(
        "router-weights",
        _SWIGLU.replace("normalize_routing_weights = 1", "normalize_routing_weights = 0"),
        4,
        {**_TOKENS, "q": positive(5, 4)},
        ", , , , , , , q",
        **_ROW_SCALES,
    ),
    mixture("not-normalized", _SWIGLU.replace("weights = 1", "weights = 0"), 4, _TOKENS, **_ROW_SCALES),
)
_B2 = {"w": octets(6, 2, 4), "s": floats(6, 2)}
_B8 = {"w": octets(6, 2, 16), "s": floats(6, 2)}
_TABLE = {"i": below(9, 2, 3)}
_GATHER = "y = ms.GatherBlockQuantized <block_size = 16, gather_axis = 0, quantize_axis = 1"
WEIGHTS = (
    case("MatMulNBits-2", f"{shared._NBITS.replace('bits = 4', 'bits = 2')} (x, w, s)", shared._X32, _B2),
    case(
        "MatMulNBits-2-zero",
        f"{shared._NBITS.replace('bits = 4', 'bits = 2')} (x, w, s, z)",
        shared._X32,
        {**_B2, "z": octets(6, 1)},
    ),
    case("MatMulNBits-8", f"{shared._NBITS.replace('bits = 4', 'bits = 8')} (x, w, s)", shared._X32, _B8),
    case(
        "MatMulNBits-8-zero",
        f"{shared._NBITS.replace('bits = 4', 'bits = 8')} (x, w, s, z)",
        shared._X32,
        {**_B8, "z": octets(6, 2)},
    ),
    case(
        "MatMulBnb4-float",
        "y = ms.MatMulBnb4 <K = 32, N = 6, block_size = 32, quant_type = 0> (x, w, s)",
        shared._X32,
        {"w": octets(96), "s": floats(6)},
    ),
    case("GatherBlockQuantized-8", f"{_GATHER}, bits = 8> (w, i, s)", _TABLE, {"w": octets(9, 32), "s": floats(9, 2)}),
    case(
        "GatherBlockQuantized-8-zero",
        f"{_GATHER}, bits = 8> (w, i, s, z)",
        _TABLE,
        {"w": octets(9, 32), "s": floats(9, 2), "z": octets(9, 2)},
    ),
    case(
        "GatherBlockQuantized-int4",
        f"{_GATHER}> (w, i, s, z)",
        _TABLE,
        {
            "w": below(16, 9, 32).astype(ml_dtypes.uint4),
            "s": floats(9, 2),
            "z": below(16, 9, 2).astype(ml_dtypes.uint4),
        },
    ),
    case(
        "GatherBlockQuantized-columns",
        "y = ms.GatherBlockQuantized <block_size = 16, gather_axis = 1, quantize_axis = 0> (w, i, s)",
        _TABLE,
        {"w": (below(16, 32, 9) - 8).astype(ml_dtypes.int4), "s": floats(2, 9)},
    ),
)
_Q = shared._SCALED
_SIGNED = {"x": octets(2, 3, 4).view(np.int8)}
QUANTIZED = (
    case(
        "QLinearMul",
        "y = ms.QLinearMul(x, a, p, w, b, q, b, q)",
        shared._OCTETS,
        {**_Q, "w": octets(3, 1)},
        "uint8[] y",
    ),
    case("QLinearLeakyRelu", "y = ms.QLinearLeakyRelu <alpha = 0.2> (x, a, p, b, q)", shared._OCTETS, _Q, "uint8[] y"),
    case(
        "QLinearAdd-signed",
        "y = ms.QLinearAdd(x, a, p, x, b, p, b, p)",
        _SIGNED,
        {**_Q, "p": np.int8(-3)},
        "int8[] y",
    ),
    case(
        "QLinearWhere",
        "y = ms.QLinearWhere(c, x, a, p, w, b, q, b, q)",
        {"c": below(2, 2, 3, 4).astype(bool), **shared._OCTETS},
        {**{key: value for key, value in _Q.items() if key != "c"}, "w": octets(3, 1)},
        "uint8[] y",
    ),
    case(
        "QLinearAveragePool",
        "y = ms.QLinearAveragePool <kernel_shape = [2, 2], pads = [1, 0, 0, 0]> (x, a, p, b, q)",
        {"x": octets(2, 3, 4, 4)},
        _Q,
        "uint8[] y",
    ),
    case(
        "QLinearGlobalAveragePool-first",
        "y = ms.QLinearGlobalAveragePool(x, a, p, a, p)",
        {"x": octets(2, 3, 4, 4)},
        _Q,
        "uint8[] y",
    ),
    case(
        "QGemm-integers",
        "y = ms.QGemm <alpha = 0.5> (x, a, p, w, s, z, c, b, q)",
        {"x": octets(3, 4)},
        {
            **{"w": octets(4, 5), "a": np.float32(0.1), "s": positive(5), "p": np.uint8(3), "z": octets(5)},
            **{"c": below(9, 5, dtype=np.int32), "b": np.float32(200), "q": np.uint8(120)},
        },
        "uint8[] y",
    ),
)
CASES = (*CASES, *SMALL, *MIXTURES, *WEIGHTS, *QUANTIZED)
