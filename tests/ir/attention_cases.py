"""Small graphs of attention, experts and recurrent operators, with what their dimensions allow."""

import numpy as np

from tests.ir.contrib_cases import Case, below, floats, octets, positive, whole

_X = {"x": floats(2, 3, 6)}
_QKV = {"w": floats(6, 24), "b": floats(24)}
PROJECTED = (
    Case("Attention", "y = ms.Attention <num_heads = 2> (x, w, b)", _X, _QKV, 5, 5),
    Case(
        "Attention-widths",
        "y = ms.Attention <num_heads = 2, qkv_hidden_sizes = [8, 8, 12]> (x, w, b)",
        _X,
        {"w": floats(6, 28), "b": floats(28)},
        5,
        5,
    ),
    Case(
        "Attention-mask",
        "y = ms.Attention <num_heads = 2> (x, w, b, m)",
        {**_X, "m": whole([1, 1, 0], [1, 1, 1], dtype=np.int32)},
        _QKV,
        5,
        5,
    ),
    Case(
        "Attention-offsets",
        "y = ms.Attention <num_heads = 2> (x, w, b, m)",
        {**_X, "m": whole(2, 3, 0, 1, dtype=np.int32)},
        _QKV,
        4,
        4,
    ),
    Case(
        "Attention-past",
        "y, p = ms.Attention <num_heads = 2, unidirectional = 1> (x, w, b, , k)",
        {**_X, "k": floats(2, 2, 2, 4, 4)},
        _QKV,
        4,
        4,
        ("y", "p"),
    ),
    Case(
        "Attention-bias",
        "y = ms.Attention <num_heads = 2> (x, w, b, , , k)",
        {**_X, "k": floats(1, 2, 3, 3)},
        _QKV,
        5,
        5,
    ),
    Case(
        "QAttention",
        "y = ms.QAttention <num_heads = 2> (x, w, b, s, s, , z, z)",
        {"x": octets(2, 3, 6)},
        {"w": octets(6, 24), "b": floats(24), "s": np.float32(0.02), "z": np.uint8(128)},
        4,
        2,
    ),
)

HEADS = (
    Case(
        "MultiHeadAttention",
        "y = ms.MultiHeadAttention <num_heads = 2> (q, k, v, b)",
        {"q": floats(2, 3, 8), "k": floats(2, 5, 8), "v": floats(2, 5, 12)},
        {"b": floats(28)},
        4,
        4,
    ),
    Case(
        "MultiHeadAttention-past",
        "y, p, r = ms.MultiHeadAttention <num_heads = 2> (q, k, v, , m, a, n, o)",
        {
            "q": floats(2, 3, 8),
            "k": floats(2, 3, 8, seed=1),
            "v": floats(2, 3, 8, seed=2),
            "n": floats(2, 2, 4, 4),
            "o": floats(2, 2, 4, 4, seed=1),
            "m": whole([1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], dtype=np.int32),
            "a": floats(2, 2, 3, 7),
        },
        {},
        3,
        3,
        ("y", "p", "r"),
    ),
    Case(
        "MultiHeadAttention-projected",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
        "o = ms.MultiHeadAttention <num_heads = 2> (q, k, v, b) y = MatMul(o, wo)",
        _X,
        {"wq": floats(6, 8), "wk": floats(6, 8, seed=1), "wv": floats(6, 12), "b": floats(28), "wo": floats(12, 5)},
        6,
        6,
    ),
    Case(
        "Attention-onnx",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
        "o = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) y = MatMul(o, wo)",
        _X,
        {"wq": floats(6, 20), "wk": floats(6, 10), "wv": floats(6, 6), "wo": floats(12, 5)},
        7,
        7,
        opset=23,
    ),
    Case(
        "Attention-onnx-cached",
        "y, p, r = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, , n, o)",
        {
            "q": floats(2, 3, 20),
            "k": floats(2, 3, 10),
            "v": floats(2, 3, 6),
            "n": floats(2, 2, 4, 5),
            "o": floats(2, 2, 4, 3),
        },
        {},
        5,
        5,
        ("y", "p", "r"),
        opset=23,
    ),
    Case(
        "Attention-onnx-itself",
        "y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, v)",
        {"q": floats(2, 3, 8), "v": floats(2, 3, 12)},
        {},
        4,
        4,
        opset=23,
    ),
)

_LENGTHS = {"l": whole(2, 2, dtype=np.int32)}
_ANGLES = {"c": floats(10, 8), "s": floats(10, 8, seed=1), "t": whole(3, dtype=np.int32)}
_GQA = "ms.GroupQueryAttention <num_heads = 4, kv_num_heads = 2"
SHARED = (
    Case(
        "GroupQueryAttention",
        f"y, p, r = {_GQA}> (q, k, v, , , l, t)",
        {"q": floats(2, 3, 64), "k": floats(2, 3, 32), "v": floats(2, 3, 32, seed=1), **_LENGTHS},
        _ANGLES,
        4,
        3,
        ("y", "p", "r"),
    ),
    Case(
        "GroupQueryAttention-packed",
        f"y, p, r = {_GQA}, do_rotary = 1> (q, , , , , l, t, c, s)",
        {"q": floats(2, 3, 128), **_LENGTHS},
        _ANGLES,
        4,
        3,
        ("y", "p", "r"),
    ),
    Case(
        "GroupQueryAttention-interleaved",
        f"y, p, r = {_GQA}, do_rotary = 1, rotary_interleaved = 1> (q, , , , , l, t, c, s)",
        {"q": floats(2, 3, 128), **_LENGTHS},
        _ANGLES,
        4,
        3,
        ("y", "p", "r"),
    ),
    Case(
        "GroupQueryAttention-sinks",
        f"y, p, r = {_GQA}> (q, , , , , l, t, , , , a, h)",
        {"q": floats(2, 3, 128), "a": floats(1, 4, 3, 3), **_LENGTHS},
        {**_ANGLES, "h": floats(4)},
        4,
        3,
        ("y", "p", "r"),
    ),
    Case(
        "GroupQueryAttention-cached",
        f"y, p, r = {_GQA}, do_rotary = 1, softcap = 5.0> (q, k, v, n, o, l, t, c, s)",
        {
            "q": floats(2, 1, 64),
            "k": floats(2, 1, 32),
            "v": floats(2, 1, 32, seed=1),
            "n": floats(2, 2, 2, 16),
            "o": floats(2, 2, 2, 16, seed=1),
            **_LENGTHS,
        },
        _ANGLES,
        4,
        3,
        ("y", "p", "r"),
    ),
)

_PLACES = {"i": whole([0, 1, 2], [3, 4, 5])}
_TURNS = {"c": floats(10, 4), "s": floats(10, 4, seed=1)}
ROTARY = (
    Case("RotaryEmbedding", "y = ms.RotaryEmbedding(x, i, c, s)", {"x": floats(2, 3, 16), **_PLACES}, _TURNS, 3, 3),
    Case(
        "RotaryEmbedding-interleaved",
        "y = ms.RotaryEmbedding <interleaved = 1> (x, i, c, s)",
        {"x": floats(2, 2, 3, 8), **_PLACES},
        _TURNS,
        3,
        3,
    ),
    Case(
        "RotaryEmbedding-partial",
        "y = ms.RotaryEmbedding <num_heads = 2, rotary_embedding_dim = 8> (x, i, c, s)",
        {"x": floats(2, 3, 24), **_PLACES},
        _TURNS,
        4,
        4,
    ),
)

_TOKENS = {"x": floats(6, 8), "r": floats(6, 4)}
_EXPERTS = {"v": floats(4, 12, 8), "b": floats(4, 12), "w": floats(4, 8, 12), "c": floats(4, 8)}
_QUANTIZED = {"x": floats(6, 32), "r": floats(6, 4)}
EXPERTS = (
    *(
        Case(
            f"MoE-{name}", f'y = ms.MoE <k = 2, activation_type = "{name}"> (x, r, v, b, w, c)', _TOKENS, _EXPERTS, 4, 3
        )
        for name in ("relu", "gelu", "silu")
    ),
    Case(
        "MoE-sequence",
        'y = ms.MoE <k = 2, activation_type = "silu"> (x, r, v, b, w, c)',
        {"x": floats(2, 3, 8), "r": floats(6, 4)},
        _EXPERTS,
        5,
        4,
    ),
    Case(
        "MoE-gated",
        'y = ms.MoE <k = 2, activation_type = "swiglu", swiglu_fusion = 1> (x, r, v, b, w, c)',
        _TOKENS,
        {**_EXPERTS, "v": floats(4, 24, 8), "b": floats(4, 24)},
        4,
        3,
    ),
    Case(
        "QMoE",
        'y = ms.QMoE <k = 2, activation_type = "silu", expert_weight_bits = 4> (x, r, v, s, , w, t)',
        _QUANTIZED,
        {"v": octets(4, 64, 16), "s": positive(4, 64), "w": octets(4, 32, 32), "t": positive(4, 32)},
        3,
        1,
    ),
    Case(
        "QMoE-blocks",
        'y = ms.QMoE <k = 2, activation_type = "silu", expert_weight_bits = 4, block_size = 16> (x, r, v, s, , w, t)',
        _QUANTIZED,
        {"v": octets(4, 64, 16), "s": positive(4, 64, 2), "w": octets(4, 32, 32), "t": positive(4, 32, 4)},
        3,
        1,
    ),
    Case(
        "QMoE-gated",
        'y = ms.QMoE <k = 2, activation_type = "swiglu", swiglu_fusion = 1, expert_weight_bits = 8> '
        "(x, r, v, s, b, w, t, c)",
        _QUANTIZED,
        {
            "v": octets(4, 64, 32),
            "s": positive(4, 64),
            "b": floats(4, 64),
            "w": octets(4, 32, 32),
            "t": positive(4, 32),
            "c": floats(4, 32),
        },
        3,
        1,
    ),
)


def _recurrent(name: str, gates: int, directions: int) -> Case:
    direction = ', direction = "bidirectional"' if directions == 2 else ""
    weights = {
        "w": floats(directions, 5 * gates, 4),
        "r": floats(directions, 5 * gates, 5),
        "b": floats(directions, 10 * gates),
    }
    text = f"y, h = {name} <hidden_size = 5{direction}> (x, w, r, b)"
    return Case(f"{name}-{directions}", text, {"x": floats(3, 2, 4)}, weights, 3, 3, ("y", "h"))


RECURRENT = (
    *(
        _recurrent(name, gates, directions)
        for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
        for directions in (1, 2)
    ),
    Case(
        "LSTM-peepholes",
        "y, h, c = LSTM <hidden_size = 5> (x, w, r, b, l, m, n, p)",
        {"x": floats(3, 2, 4), "l": whole(3, 2, dtype=np.int32)},
        {
            "w": floats(1, 20, 4),
            "r": floats(1, 20, 5),
            "b": floats(1, 40),
            "m": floats(1, 2, 5),
            "n": floats(1, 2, 5, seed=1),
            "p": floats(1, 15),
        },
        3,
        3,
        ("y", "h", "c"),
    ),
    Case(
        "DynamicQuantizeLSTM",
        "y, h, c = ms.DynamicQuantizeLSTM <hidden_size = 5> (x, w, r, b, , , , , s, z, s, z)",
        {"x": floats(3, 2, 4)},
        {
            "w": octets(1, 4, 20),
            "r": octets(1, 5, 20),
            "b": floats(1, 40),
            "s": positive(1, 20),
            "z": np.full((1, 20), 128, np.uint8),
        },
        3,
        0,
        ("y", "h", "c"),
    ),
    Case(
        "LinearAttention",
        'y, s = ms.LinearAttention <q_num_heads = 4, kv_num_heads = 2, update_rule = "gated_delta"> (q, k, v, p, d, b)',
        {
            "q": floats(2, 3, 16),
            "k": floats(2, 3, 8),
            "v": floats(2, 3, 10),
            "p": floats(2, 2, 4, 5),
            "d": -positive(2, 3, 8),
            "b": floats(2, 3, 2),
        },
        {},
        5,
        5,
        ("y", "s"),
    ),
    Case(
        "CausalConvWithState",
        'y, s = ms.CausalConvWithState <activation = "silu"> (x, w, b, p)',
        {"x": floats(2, 4, 6), "p": floats(2, 4, 2)},
        {"w": floats(4, 1, 3), "b": floats(4)},
        2,
        2,
        ("y", "s"),
    ),
)

_IMAGES = {"x": floats(2, 3, 4, 4)}
IMAGES = (
    Case("Resize", 'y = Resize <mode = "linear"> (x, , s)', _IMAGES, {"s": whole(1, 1, 2, 2, dtype=np.float32)}, 2, 2),
    Case("Resize-sizes", "y = Resize (x, , , s)", _IMAGES, {"s": whole(2, 3, 8, 8)}, 2, 2),
    Case("Upsample", "y = Upsample (x, s)", _IMAGES, {"s": whole(1, 1, 2, 2, dtype=np.float32)}, 2, 2, opset=9),
    Case("GridSample", "y = GridSample (x, g)", {**_IMAGES, "g": np.tanh(floats(2, 5, 6, 2))}, {}, 2, 2),
    Case(
        "CropAndResize",
        "y = ms.CropAndResize(x, r, i, c)",
        {**_IMAGES, "r": np.abs(np.tanh(floats(4, 4))), "i": below(2, 4, dtype=np.int32)},
        {"c": whole(3, 3, dtype=np.int32)},
        2,
        2,
    ),
)
