"""Batch normalization while a converted module is trained, beside PyTorch's own layers."""

import numpy as np
import pytest
import torch
from torch import nn

from bevel.backends.torch.ops.normalization import batch_normalization, layer_normalization
from tests.backends.torch_ops.single import by_reference, model_of

SHAPES = {nn.BatchNorm1d: (6, 4), nn.BatchNorm2d: (3, 4, 5, 2), nn.BatchNorm3d: (2, 4, 3, 2, 2)}


def layer_of(kind, momentum):
    layer = kind(4, momentum=momentum)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    return layer


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.3])
@pytest.mark.parametrize("kind", SHAPES)
def test_training_is_that_of_the_layer(kind, momentum):
    torch.manual_seed(0)
    ours, theirs = layer_of(kind, momentum), layer_of(kind, momentum)
    stored = float(np.float32(1 - momentum))  # what a graph's attribute holds
    for _ in range(3):
        x = torch.randn(SHAPES[kind])
        operands = (ours.weight, ours.bias, ours.running_mean, ours.running_var)
        (y,) = batch_normalization(x, *operands, momentum=stored, training=True)
        wanted = theirs(x)
        assert torch.equal(y, wanted)
        y.square().sum().backward()
        wanted.square().sum().backward()
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


def test_half_precision_inputs_update_statistics_in_float32():
    torch.manual_seed(0)
    layer, x = layer_of(nn.BatchNorm2d, 0.1), torch.randn(SHAPES[nn.BatchNorm2d])
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    (y,) = batch_normalization(x.half(), layer.weight, layer.bias, mean, var, momentum=0.9, training=True)
    layer(x.half().float())
    assert y.dtype == torch.float16
    torch.testing.assert_close(mean, layer.running_mean)
    torch.testing.assert_close(var, layer.running_var)


def test_half_precision_statistics_are_updated_in_place():
    torch.manual_seed(0)
    layer, x = layer_of(nn.BatchNorm2d, 0.1), torch.randn(SHAPES[nn.BatchNorm2d])
    mean, var = torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    batch_normalization(x, layer.weight, layer.bias, mean, var, momentum=0.9, training=True)
    layer(x)
    torch.testing.assert_close(mean, layer.running_mean.bfloat16())
    torch.testing.assert_close(var, layer.running_var.bfloat16())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_graphs_made_for_training_return_new_statistics_and_change_none(shape):
    random = np.random.default_rng(0)
    inputs = [random.standard_normal(shape), *random.uniform(0.5, 1.5, (4, 4))]
    inputs = [array.astype(np.float32) for array in inputs]
    model = model_of("BatchNormalization", inputs, 15, training_mode=1, momentum=0.7, outputs=(1, 1, 1))
    tensors = [torch.tensor(array) for array in inputs]
    results = batch_normalization(*tensors, training_mode=1, momentum=0.7, training=True, outputs=3)
    feed = {f"x{place}": array for place, array in enumerate(inputs)}
    for got, wanted in zip(results, by_reference(model, feed), strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(tensor, array) for tensor, array in zip(tensors, inputs, strict=True))


def test_statistics_of_layers_are_of_the_stash_type():
    x = torch.randn(2, 3, 8, dtype=torch.float16)
    y, mean, inverse = layer_normalization(x, torch.ones(8, dtype=torch.float16), outputs=3)
    assert (y.dtype, mean.dtype, inverse.dtype) == (torch.float16, torch.float32, torch.float32)
    assert mean.shape == inverse.shape == (2, 3, 1)
