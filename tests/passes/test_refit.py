import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.ir.edit import FREE_TO_DROP, mask, select
from bevel.ir.groups import analyse
from bevel.passes.base import Context, Masked
from bevel.passes.calibration import Calibration
from bevel.passes.choice import choose, outermost
from bevel.passes.execution import Execution
from bevel.passes.fitting.refit import refit, scatter
from bevel.passes.importance import lift
from bevel.passes.pipeline import calibration_of
from bevel.passes.verify import verify
from tests import zoo
from tests.graphs import graph

LINEAR = """
l1 (float[n, 6] x) => (float[n, 3] y) {
  h = MatMul (x, w1)
  g = Gemm (h, w2, b2)
  y = MatMul (g, w3)
}
"""
LINEAR_WEIGHTS = {"w1": (6, 8), "w2": (8, 5), "b2": (5,), "w3": (5, 3)}
NORMALIZED = """
n1 (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
  h = Conv <pads = [1, 1, 1, 1]> (x, w1)
  i = BatchNormalization (h, s1, b1, m1, v1)
  j = Relu (i)
  k = Conv <group = 8, pads = [1, 1, 1, 1]> (j, w2)
  l = BatchNormalization (k, s2, b2, m2, v2)
  m = Relu (l)
  y = Conv (m, w3)
}
"""
VECTORS = {f"{kind}{number}": (8,) for kind in "sbmv" for number in (1, 2)}
NORMALIZED_WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (4, 8, 1, 1), **VECTORS}
RNG = np.random.default_rng(7)
ROWS = [{"x": (RNG.standard_normal((40, 6)) + 1).astype(np.float32)} for _ in range(3)]
IMAGES = [{"x": RNG.random((16, 3, 6, 6)).astype(np.float32)} for _ in range(2)]


def normalized():
    model = graph(NORMALIZED, NORMALIZED_WEIGHTS)
    for name in ("v1", "v2"):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.abs(value.const_value.numpy()) + 0.5, name=name)
    return model


def pruned(model, keeps):
    small = model.clone()
    select(small, keeps)
    return small


def context(feeds, model):
    return Context(0, Calibration.of(feeds, model), Execution())


def answers(model, feeds):
    with Execution().open(model) as runs:
        return np.concatenate([next(iter(runs.run(feed).values())).ravel() for feed in feeds])


def error(model, small, feeds):
    expected = answers(model, feeds)
    return float(np.square(answers(small, feeds) - expected).sum() / np.square(expected).sum())


def test_a_layer_after_a_cut_is_the_damped_least_squares_solution():
    model = graph(LINEAR, LINEAR_WEIGHTS)
    keep = np.array([0, 3, 4, 6, 7])
    small = pruned(model, {"w1[1]": keep})
    refit(model, small, {"w1[1]": keep}, context(ROWS, model))
    w1, w2, b2 = (model.graph.initializers[name].const_value.numpy() for name in ("w1", "w2", "b2"))
    h = np.concatenate([feed["x"] for feed in ROWS]) @ w1
    covariance = np.cov(h.T, bias=True)
    damped = covariance[np.ix_(keep, keep)] + 0.01 * np.diag(covariance)[keep].mean() * np.eye(5)
    best = w2[keep] + np.linalg.solve(damped, covariance[keep] @ w2 - covariance[np.ix_(keep, keep)] @ w2[keep])
    fitted, bias = (small.graph.initializers[name].const_value.numpy() for name in ("w2", "b2"))
    assert np.allclose(fitted, best, rtol=1e-3, atol=1e-4)
    assert np.allclose(bias, b2 + h.mean(0) @ w2 - h.mean(0)[keep] @ best, rtol=1e-3, atol=1e-3)


def test_refitting_lowers_the_error_and_keeps_the_promise():
    model = normalized()
    keeps = {"w1[0]": np.array([0, 2, 5, 6])}
    cut, fitted = pruned(model, keeps), pruned(model, keeps)
    result = refit(model, fitted, keeps, context(IMAGES, model))
    assert (result.layers, result.normalizations) == (1, 0)  # nothing before the last layer sums over what was cut
    assert error(model, fitted, IMAGES) < 0.8 * error(model, cut, IMAGES)
    reference = model.clone()
    scatter(reference, keeps, result.contents)
    mask(reference, keeps)
    assert verify(reference, fitted, IMAGES, Masked()).kept


def test_a_fitted_weight_at_another_place_is_caught():
    model = normalized()
    keeps = {"w1[0]": np.array([0, 2, 5, 6])}
    fitted = pruned(model, keeps)
    result = refit(model, fitted, keeps, context(IMAGES, model))
    reference = model.clone()
    scatter(reference, keeps, {name: array[:, ::-1] for name, array in result.contents.items()})
    mask(reference, keeps)
    assert not verify(reference, fitted, IMAGES, Masked()).kept


@pytest.mark.parametrize(
    "name",
    [
        *("resnet", "mobilenet", "resnext", "shufflenet", "unet", "convnext"),
        *("gpt", "llama", "bert", "swin", "lstm"),
    ],
)
def test_architectures_are_fitted_and_equal_their_reference(name):
    model = bevel.load(zoo.model(name))
    feeds = calibration_of(None, model, 0)
    here = Context(0, feeds, Execution(), samples=16)
    analysis = analyse(model)
    groups = outermost(analysis, choose(analysis, FREE_TO_DROP, (), ()))
    scores = lift.score("obs", analysis, groups, here)
    keeps = {name: np.sort(np.argsort(-values)[: -(-len(values) // 2)]) for name, values in scores.items()}
    small = pruned(model, keeps)
    result = refit(model, small, keeps, here)
    assert result.layers
    reference = model.clone()
    scatter(reference, keeps, result.contents)
    mask(reference, keeps)
    assert verify(reference, small, feeds, Masked()).kept


def test_noise_leaves_statistics_alone_that_pruning_does_not_touch():
    model = normalized()
    keep = {"w1[0]": np.arange(8)}
    untouched = model.clone()
    feeds = Calibration(lambda: IMAGES, "noise", lambda count: context(IMAGES, model).calibration)
    result = refit(model, untouched, keep, Context(0, feeds, Execution()))
    assert result.layers == 0 and result.normalizations == 2
    for name in ("m1", "v1", "m2", "v2"):
        before, after = (each.graph.initializers[name].const_value.numpy() for each in (model, untouched))
        assert np.allclose(before, after, rtol=1e-6)
