"""Attention in torch: one function in the fused kernel and step by step, for queries that see no key too."""

import numpy as np
import onnx
import pytest
import torch

from bevel.backends.torch.ops.attention import attention
from bevel.backends.torch.ops.linear_attention import linear_attention
from bevel.backends.torch.ops.scores import Softmax, attend, attend_openly
from bevel.errors import UnsupportedModel
from tests.backends.torch_ops.single import by_reference, by_torch, feed_of, model_of, same

FLOAT = onnx.TensorProto.FLOAT
TOLERANCE = 1e-6  # single precision, a dozen terms


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def heads(*shape: int) -> list[torch.Tensor]:
    return [torch.tensor(floats(*shape, seed=seed)) for seed in range(3)]


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("options", [{}, {"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.3, "is_causal": 1}])
@pytest.mark.parametrize("masked", [False, True])
def test_every_version_is_the_reference_evaluators(opset: int, options: dict, masked: bool):
    q, k, v = (floats(2, 4, 3, 8), floats(2, 2, 5, 8, seed=1), floats(2, 2, 5, 6, seed=2))
    mask = floats(3, 5) > 0 if masked else None
    past = [floats(2, 2, 4, 8), floats(2, 2, 4, 6)]
    if masked:
        mask = floats(3, 9) > 0
    inputs = [q, k, v, mask, *past]
    model = model_of("Attention", inputs, opset, outputs=(FLOAT,) * 3, **options)
    feed = feed_of(model, inputs)
    assert same(by_torch(model, feed), by_reference(model, feed))


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_query_that_sees_no_key_gets_zeros_and_a_slope(kind: torch.dtype):
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    if kind is torch.float32:
        mask = torch.zeros(3, 4).masked_fill(~mask, -torch.inf)
    for outputs in (1, 4):
        q, k, v = (x.requires_grad_() for x in (*heads(2, 2, 3, 8)[:1], *heads(2, 2, 4, 8)[1:]))
        out = attention(q, k, v, mask, outputs=outputs)[0]
        assert not out[:, :, 1].any()
        assert out[:, :, 0].all()
        out.sum().backward()
        assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_both_ways_are_one_function():
    q, k, v = heads(2, 4, 5, 8)
    mask = torch.tensor(floats(2, 1, 5, 5)) > -1
    openly = attend_openly(q, k[:, :2], v[:, :2], mask, Softmax(0.3))[0]
    assert torch.allclose(attend(q, k[:, :2], v[:, :2], mask, 0.3), openly, atol=TOLERANCE)
    assert not torch.allclose(attend(q, k[:, :2], v[:, :2], mask, 0.4), openly, atol=TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"is_causal": 1}, {"is_causal": 1, "softcap": 2.0}, {"left_window_size": 2}])
def test_sizes_may_be_of_any_number(options: dict):
    class Attend(torch.nn.Module):
        def forward(self, x, mask):
            return attention(x, x, x, mask, q_num_heads=2, kv_num_heads=2, **options)[0]

    positions = torch.export.Dim("positions", min=2)
    mask = torch.ones(5, 5, dtype=torch.bool)
    program = torch.export.export(
        Attend(),
        (torch.tensor(floats(2, 5, 8)), mask),
        dynamic_shapes=({0: torch.export.Dim("batch", min=2), 1: positions}, {0: positions, 1: positions}),
    )
    x, mask = torch.tensor(floats(3, 7, 8)), torch.tensor(floats(7, 7)) > 0
    assert torch.allclose(program.module()(x, mask), Attend()(x, mask), atol=TOLERANCE)


def test_a_module_may_be_of_another_precision():
    q, k, v = (x.double() for x in heads(2, 2, 5, 8))
    wide = attention(q, k, v, torch.tensor(floats(5, 5)), is_causal=1)[0]
    narrow = attention(q.float(), k.float(), v.float(), torch.tensor(floats(5, 5)), is_causal=1)[0]
    assert wide.dtype == torch.float64
    assert torch.allclose(wide.float(), narrow, atol=TOLERANCE)


def test_linear_attention_refuses_operands_that_its_rule_does_not_take():
    q, k, v = heads(2, 5, 8)
    options = {"q_num_heads": 2, "kv_num_heads": 2}
    assert linear_attention(q, k, v, update_rule="linear", **options)[0].shape == (2, 5, 8)
    with pytest.raises(UnsupportedModel, match="does not fit"):
        linear_attention(q, k, v, update_rule="gated", **options)
    with pytest.raises(UnsupportedModel, match="no update rule 'square'"):
        linear_attention(q, k, v, update_rule="square", **options)
