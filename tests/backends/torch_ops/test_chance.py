"""Chance, dropout and the broadcasting of operator sets before 7."""

import numpy as np
import pytest
import torch

import bevel
from tests.backends.torch_ops.single import by_reference, by_torch, converted, feed_of, model_of, same
from tests.graphs import proto

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
P = np.random.default_rng(1).uniform(size=(50, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("op_type", "inputs", "opset", "how"),
    [
        ("RandomUniform", [], 22, {"shape": [40, 3], "low": -1.0, "high": 2.0, "seed": 5.0}),
        ("RandomUniformLike", [P], 22, {"seed": 5.0}),
        ("Bernoulli", [P], 22, {"seed": 5.0}),
        ("Dropout", [P, np.float32(0.25), np.array(True)], 13, {"seed": 5, "outputs": (1, 9), "constants": (1, 2)}),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_seed_draws_the_numbers_of_the_reference(op_type, inputs, opset, how):
    inputs = [np.asarray(x) for x in inputs]
    model = model_of(op_type, inputs, opset, **how)
    feed = feed_of(model, inputs)
    assert same(by_torch(model, feed), by_reference(model, feed))
    other = model_of(op_type, inputs, opset, **{**how, "seed": how["seed"] + 1})
    assert not same(by_torch(other, feed), by_reference(model, feed))


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomNormalLike"])
def test_normal_numbers_have_their_mean_and_scale(op_type):
    shape = {"shape": [100, 100]} if op_type == "RandomNormal" else {}
    inputs = [] if shape else [np.zeros((100, 100), np.float32)]
    model = model_of(op_type, inputs, 22, mean=3.0, scale=2.0, seed=1.0, **shape)
    (drawn,) = by_torch(model, feed_of(model, inputs))
    # 10,000 numbers: the mean varies by 0.02, the deviation by 0.014.
    assert abs(drawn.mean() - 3) < 0.1 and abs(drawn.std() - 2) < 0.1


def test_classes_are_drawn_as_often_as_likely():
    model = model_of("Multinomial", [np.log(np.float32([[1, 3]]))], 22, sample_size=10_000, outputs=(6,))
    (drawn,) = by_torch(model, {"x0": np.log(np.float32([[1, 3]]))})
    assert drawn.dtype == np.int32 and abs(drawn.mean() - 0.75) < 0.03  # varies by 0.004


@pytest.mark.parametrize("opset", [1, 6, 7, 10, 12, 13, 22])
def test_dropout_drops_in_training_only(opset):
    x = np.ones((100, 100), np.float32)
    how = {"ratio": 0.25} if opset < 12 else {}
    inputs = [x] if opset < 12 else [x, np.float32(0.25)]
    module = converted(model_of("Dropout", inputs, opset, constants=(1,), **how))
    assert torch.equal(module(torch.tensor(x)), torch.tensor(x))
    dropped = module.train()(torch.tensor(x))
    assert abs((dropped == 0).float().mean() - 0.25) < 0.03  # varies by 0.004
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / 0.75]))
    assert not torch.equal(dropped, module(torch.tensor(x)))


def test_a_ratio_that_is_left_out_is_a_half():
    text = "m (float[50, 100] x) => (float[50, 100] y) <bool t = {1}> { y = Dropout <seed = 1> (x, , t) }"
    (dropped,) = by_torch(proto(text), {"x": np.ones((50, 100), np.float32)})
    assert abs((dropped == 0).mean() - 0.5) < 0.03  # varies by 0.007
    assert set(np.unique(dropped)) == {0, 2}


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow"])
def test_the_second_tensor_is_aligned_at_an_axis(op_type):
    known = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}[op_type]
    a, b = np.abs(X) + 1, np.abs(X[0, :, :, 0]) + 1
    model = model_of(op_type, [a, b], 6, axis=1, broadcast=1)
    assert same(by_torch(model, feed_of(model, [a, b])), [known(a, b[:, :, None])])
    model = model_of(op_type, [a, X[0, 0] ** 2], 6, broadcast=1)
    assert same(by_torch(model, feed_of(model, [a, X[0, 0] ** 2])), [known(a, X[0, 0] ** 2)])


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor", "Equal", "Less", "Greater"])
def test_comparisons_are_aligned_at_an_axis(op_type):
    names = {"Less": np.less, "Greater": np.greater, "Equal": np.equal}
    known = names.get(op_type) or getattr(np, f"logical_{op_type.lower()}")
    a, b = (X, X[0, :, :, 0]) if op_type in ("Less", "Greater") else (X > 0, X[0, :, :, 0] > 0)
    model = model_of(op_type, [a, b], 6, axis=1, broadcast=1, outputs=(9,))
    assert same(by_torch(model, feed_of(model, [a, b])), [known(a, b[:, :, None])])


def test_without_broadcasting_other_ranks_are_refused():
    model = model_of("Add", [X, X[0]], 6)
    with pytest.raises(bevel.BevelError, match="without broadcasting"):
        by_torch(model, feed_of(model, [X, X[0]]))
