"""ONNX Runtime's own operators: torch computes what ONNX Runtime does, and gradients arrive where floats flow."""

import numpy as np
import pytest
import torch

from bevel.backends.torch import to_torch
from bevel.backends.torch.ops import experts, group_query, packed
from bevel.backends.torch.types import to_array, to_tensor
from bevel.errors import UnsupportedModel
from tests.backends.torch_ops.contrib_cases import CASES, ROUNDED_SUMS, Case, case, close, floats, octets, runtime

BY_NAME = {case.name: case for case in CASES}
NUDGE = 1e-5  # of an entry, in double precision, for slopes by differences
SLOPE_TOLERANCE = 1e-5  # of a difference whose error grows with the square of the nudge

LEARNING = (
    *("BiasGelu", "FastGelu", "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "FusedMatMul"),
    *("FusedConv", "MatMulNBits-float-zero", "MatMulNBits-2", "GatherBlockQuantized", "Attention-pairs"),
    *("MultiHeadAttention-mask", "GroupQueryAttention-rotary", "GroupQueryAttention-sink", "RotaryEmbedding"),
    *("MoE-swiglu", "QMoE-blocks", "LinearAttention", "CausalConvWithState", "EmbedLayerNormalization"),
)


def run(case: Case) -> list[np.ndarray]:
    outputs = to_torch(case.model)(**{name: to_tensor(array) for name, array in case.feed.items()})
    return [to_array(value) for value in (outputs if isinstance(outputs, tuple) else (outputs,))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_computes_what_onnx_runtime_does(case: Case):
    pairs = zip(run(case), runtime(case), strict=True)
    assert all(close(got, expected, case.name in ROUNDED_SUMS) for got, expected in pairs)


@pytest.mark.parametrize("name", ["MatMulNBits", "GroupQueryAttention-window", "QMoE-zeros", "QGemm"])
def test_a_wrong_weight_is_noticed(name: str):
    right, wrong = BY_NAME[name], BY_NAME[name]
    changed = next(key for key in ("w", "c") if key in {**right.weights, **right.feed})
    swap = {changed: np.flip({**right.weights, **right.feed}[changed], -1).copy()}
    wrong = Case(
        **{**right.__dict__, "feed": {**right.feed, **{k: v for k, v in swap.items() if k in right.feed}}}
        | {"weights": {**right.weights, **{k: v for k, v in swap.items() if k in right.weights}}}
    )
    assert not close(run(wrong)[0], runtime(right)[0], 1)


@pytest.mark.parametrize("name", LEARNING)
def test_slopes_are_those_of_differences(name: str):
    case = BY_NAME[name]
    module = to_torch(case.model).double()
    feed = {key: to_tensor(array) for key, array in case.feed.items()}
    feed = {key: x.double().requires_grad_() if x.is_floating_point() else x for key, x in feed.items()}
    learning = [x for x in (*feed.values(), *module.parameters()) if x.requires_grad]

    def total() -> torch.Tensor:
        outputs = module(**feed)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return (first * torch.linspace(-1, 1, first.numel()).reshape(first.shape)).sum()

    assert learning
    slopes = torch.autograd.grad(total(), learning, allow_unused=True)
    assert any(slope is not None and slope.abs().max() > 0 for slope in slopes)
    for x, slope in zip(learning, slopes, strict=True):
        if slope is not None:
            assert slope.reshape(-1)[0].item() == pytest.approx(difference(total, x), SLOPE_TOLERANCE, SLOPE_TOLERANCE)


def difference(total, x: torch.Tensor) -> float:
    """The slope in the first entry."""
    entry = x.detach().view(-1)
    with torch.no_grad():
        entry[0] += NUDGE
        above = total().item()
        entry[0] -= 2 * NUDGE
        below = total().item()
        entry[0] += NUDGE
    return (above - below) / (2 * NUDGE)


def test_scales_of_packed_weights_learn():
    module = to_torch(BY_NAME["MatMulNBits"].model)
    module(torch.tensor(BY_NAME["MatMulNBits"].feed["x"])).sum().backward()
    assert module.s.grad.abs().max() > 0
    assert not module.w.requires_grad


@pytest.mark.parametrize(
    "name", ["MatMulNBits", "MultiHeadAttention-mask", "QMoE-blocks", "MoE-relu", "SkipLayerNormalization"]
)
def test_programs_are_exported(name: str):
    case = BY_NAME[name]
    feed = {key: to_tensor(array) for key, array in case.feed.items()}
    program = torch.export.export(to_torch(case.model), (), feed)
    got = program.module()(**feed)
    first = got[0] if isinstance(got, tuple) else got
    assert close(to_array(first), runtime(case)[0])


def test_the_positions_of_a_cache_may_be_of_any_number():
    def attend(q, k, v, past_key, past_value):
        lengths = torch.full((q.shape[0],), past_key.shape[2] + q.shape[1] - 1)
        total = past_key.shape[2] + q.shape[1]
        return group_query.group_query_attention(
            q, k, v, past_key, past_value, lengths, total, num_heads=4, kv_num_heads=2
        )

    class Attend(torch.nn.Module):
        def forward(self, *operands):
            return attend(*operands)

    def operands(past: int, new: int) -> tuple[torch.Tensor, ...]:
        shapes = [(1, new, 32), (1, new, 16), (1, new, 16), (1, 2, past, 8), (1, 2, past, 8)]
        return tuple(torch.tensor(floats(*shape)) for shape in shapes)

    new, past = torch.export.Dim("new", min=2), torch.export.Dim("past", min=2)
    program = torch.export.export(Attend(), operands(5, 3), dynamic_shapes=(({1: new},) * 3 + ({2: past},) * 2,))
    given = operands(9, 4)
    assert torch.allclose(program.module()(*given)[0], attend(*given)[0], atol=1e-6)


def test_heads_are_normalised_before_they_turn():
    q, k, v = (torch.tensor(floats(1, 3, width)) for width in (32, 16, 16))
    gain = torch.tensor(floats(8))
    lengths = torch.tensor([2])
    options = {"num_heads": 4, "kv_num_heads": 2}

    def normal(x: torch.Tensor, heads: int) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x.reshape(1, 3, heads, 8), (8,), gain, 1e-6).reshape(x.shape)

    expected = group_query.group_query_attention(normal(q, 4), normal(k, 2), v, None, None, lengths, 3, **options)
    got = group_query.group_query_attention(
        q, k, v, None, None, lengths, 3, q_norm_weight=gain, k_norm_weight=gain, **options
    )
    assert torch.allclose(got[0], expected[0], atol=1e-6)


def test_every_expert_sees_every_token_where_a_graph_is_traced(monkeypatch):
    case = BY_NAME["MoE-swiglu"]
    eager = run(case)[0]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert close(run(case)[0], eager)


@pytest.mark.parametrize(
    ("text", "feed", "weights", "reason"),
    [
        (
            "y = ms.MatMulNBits <K = 32, N = 6, bits = 3, block_size = 16> (x, w, s)",
            {"x": floats(2, 32)},
            {"w": octets(6, 2, 6), "s": floats(6, 2)},
            "3 bits",
        ),
        (
            "y = ms.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, kv_cache_bit_width = 2> (q, k, v, , , l, t)",
            {"q": floats(1, 3, 32), "k": floats(1, 3, 16), "v": floats(1, 3, 16)},
            {"l": np.array([2], np.int32), "t": np.int32(3)},
            "codes of different kinds",
        ),
        (
            "y = ms.MoE <use_sparse_mixer = 1> (x, r, w, b, u, c)",
            BY_NAME["MoE-relu"].feed,
            BY_NAME["MoE-relu"].weights,
            "sparse mixer",
        ),
    ],
)
def test_what_is_not_computed_is_refused(text, feed, weights, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        to_torch(case("refused", text, feed, weights).model)


def test_bytes_hold_the_first_entries_in_their_low_bits():
    assert packed.unpack(torch.tensor([0b11100100], dtype=torch.uint8), 2).tolist() == [0, 1, 2, 3]


def test_a_gate_has_to_be_there():
    layers = experts.Experts(lambda x, e: x, lambda x, e: x, None, "swiglu", 1.0, 0.0, 1.0, 0)
    with pytest.raises(UnsupportedModel, match="second operand"):
        layers(torch.ones(2, 4), 0)
