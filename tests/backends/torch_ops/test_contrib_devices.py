"""Operators that ONNX Runtime computes on other devices only, against their definitions written out."""

import numpy as np
import pytest
import torch

from bevel.backends.torch import to_torch
from bevel.backends.torch.types import to_tensor
from tests.backends.torch_ops.contrib_cases import Array, case, floats

TOLERANCE = 1e-5  # of single precision, over some ten operations


def run(text: str, feed: dict[str, Array], **weights: Array) -> torch.Tensor:
    outputs = to_torch(case("device", f"y = ms.{text}", feed, weights).model)(*map(to_tensor, feed.values()))
    return outputs[0] if isinstance(outputs, tuple) else outputs


def close(got: torch.Tensor, expected: Array) -> bool:
    return got.shape == expected.shape and np.allclose(got.detach().numpy(), expected, TOLERANCE, TOLERANCE)


def group_normalised(x: Array, groups: int, gain: Array, offset: Array) -> Array:
    """Of entries whose channels come last."""
    parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * gain + offset


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


GAIN = {"g": floats(6), "b": floats(6, seed=1)}
X = floats(2, 4, 5, 6)


def test_groups_of_channels_are_normalised():
    y = group_normalised(X, 3, GAIN["g"], GAIN["b"])
    assert close(run("GroupNorm <groups = 3, activation = 0> (x, g, b)", {"x": X}, **GAIN), y)
    assert close(run("GroupNorm <groups = 3, activation = 1> (x, g, b)", {"x": X}, **GAIN), y * sigmoid(y))
    first = run(
        "GroupNorm <groups = 3, activation = 0, channels_last = 0> (x, g, b)", {"x": X.transpose(0, 3, 1, 2)}, **GAIN
    )
    assert close(first, y.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("skip", [floats(2, 6), floats(2, 1, 1, 6), floats(2, 4, 5, 6, seed=3)])
def test_a_residual_may_be_one_for_all_positions(skip: Array):
    total = X + skip.reshape(2, *([1, 1] if skip.ndim == 2 else skip.shape[1:3]), 6) + GAIN["b"]
    got = run("SkipGroupNorm <groups = 3, activation = 0> (x, g, b, s, b)", {"x": X, "s": skip}, **GAIN)
    assert close(got, group_normalised(total, 3, GAIN["g"], GAIN["b"]))


def test_channels_come_last_in_a_convolution():
    w, b = floats(6, 3, 3, 3), floats(6)
    x = floats(2, 5, 5, 6)
    expected = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(w), torch.tensor(b), groups=2
    )
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert close(run("NhwcConv <group = 2> (x, w, b)", {"x": x}, w=w, b=b), expected)
    fused = run('NhwcFusedConv <group = 2, activation = "Relu"> (x, w, b)', {"x": x}, w=w, b=b)
    assert close(fused, np.maximum(expected, 0))


def test_biases_are_added_before_what_follows():
    x, b = floats(2, 3, 4), floats(4)
    residual = floats(2, 3, 4, seed=1)
    scores = np.exp(x + b)
    assert close(run("BiasAdd(x, b, r)", {"x": x, "r": residual}, b=b), x + b + residual)
    assert close(run("BiasDropout(x, b, r)", {"x": x, "r": residual}, b=b), x + b + residual)
    normal = run("BiasSoftmax <axis = 2, is_inner_broadcast = 1> (x, b)", {"x": x}, b=b.reshape(1, 1, 4))
    assert close(normal, scores / scores.sum(2, keepdims=True))
    flat = run("BiasSoftmax <axis = 1, is_inner_broadcast = 1> (x, b)", {"x": x}, b=b.reshape(1, 1, 4))
    assert close(flat, scores / scores.sum((1, 2), keepdims=True))


def test_one_half_of_the_entries_gates_the_other():
    x, b = floats(2, 3, 8), floats(8)
    kept, gate = np.split(x + b, 2, -1)
    expected = kept * torch.nn.functional.gelu(torch.tensor(gate)).numpy()
    assert close(run("BiasSplitGelu(x, b)", {"x": x}, b=b), expected)


def test_complex_numbers_are_pairs():
    a, b = floats(3, 4, 2), floats(3, 4, 2, seed=1)
    left, right = a[..., 0] + 1j * a[..., 1], b[..., 0] + 1j * b[..., 1]
    for name, product in (("ComplexMul", left * right), ("ComplexMulConj", left * right.conj())):
        assert close(run(f"{name}(a, b)", {"a": a, "b": b}), np.stack([product.real, product.imag], -1))


@pytest.mark.parametrize(("entry", "finite"), [(1.0, True), (np.inf, False), (np.nan, False)])
def test_all_entries_are_finite_or_not(entry: float, finite: bool):
    x = np.array([0, entry], np.float32)
    assert run("IsAllFinite(x, z)", {"x": x, "z": floats(3)}).item() is finite


def test_rows_of_a_table_are_taken():
    table, ids = floats(5, 3), np.array([[4, 0], [1, 4]])
    assert close(run("TorchEmbedding(w, i)", {"i": ids}, w=table), table[ids])
