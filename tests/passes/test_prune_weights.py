import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.demo import Digits
from bevel.errors import PromiseBroken, UsageError
from bevel.models import path
from bevel.passes.fitting.layers import layers
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.prune_weights import PruneWeights
from bevel.passes.sparsity.feedback import factor, prune
from bevel.passes.sparsity.masks import lowest, lowest_by_output, lowest_of_every, wanted
from bevel.passes.sparsity.swaps import Local
from bevel.passes.sparsity.zeros import Ledger, deflated, put_lazily
from bevel.testing import check_pass
from tests.graphs import graph, mlp, snapshot

CONVOLUTIONS = """
net (float[n, 4, 9, 9] x) => (float[n, 6, 9, 9] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, plain)
  r = Relu (a)
  b = Conv <group = 8, pads = [1, 1, 1, 1]> (r, depthwise)
  c = Conv <group = 2> (b, grouped)
  s = Relu (c)
  d = ConvTranspose <pads = [1, 1, 1, 1]> (s, transposed)
  y = Conv (d, last)
}
"""
KERNELS = {
    "plain": (8, 4, 3, 3),
    "depthwise": (8, 1, 3, 3),
    "grouped": (8, 4, 1, 1),
    "transposed": (8, 6, 3, 3),
    "last": (6, 6, 1, 1),
}
WIDE = "wide (float[n, 40] x) => (float[n, 30] y) { y = MatMul (x, w) }"


def correlated(rows=400, width=40, seed=1):
    """Inputs that mostly lie in a few directions, of different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, 10)) @ rng.standard_normal((10, width))
    scales = rng.uniform(0.1, 2, width)
    return ((mixed + 0.3 * rng.standard_normal((rows, width))) * scales).astype(np.float32)


def wide():
    return graph(WIDE, {"w": (40, 30)})


def weight(model, name="w"):
    return model.graph.initializers[name].const_value.numpy()


def zeros(array):
    return array.size - np.count_nonzero(array)


def layer_error(before, after, x):
    return float(np.sum((x.astype(np.float64) @ (after - before)) ** 2))


def pruned(x, **options):
    model = wide()
    before = weight(model)
    bevel.optimize(model, PruneWeights(**options), calibration=[{"x": x}])
    return layer_error(before, weight(model), x), weight(model)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.617, 1.0])
def test_sparsity_is_exact(method, sparsity):
    model = graph(CONVOLUTIONS, KERNELS)
    bevel.optimize(model, PruneWeights(method=method, sparsity=sparsity), calibration=images())
    for name, shape in KERNELS.items():
        assert zeros(weight(model, name)) == wanted(sparsity, np.prod(shape)), name


def images():
    return [{"x": np.random.default_rng(2).standard_normal((4, 4, 9, 9)).astype(np.float32)}]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
@pytest.mark.parametrize(("pattern", "count", "of"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_a_pattern_holds_in_every_row_of_every_group(method, pattern, count, of):
    model = graph(CONVOLUTIONS, KERNELS)
    bevel.optimize(model, PruneWeights(method=method, pattern=pattern, swaps=3, refit=2), calibration=images())
    for layer in layers(model):
        rows = layer.matrices(layer.tensor.numpy())
        whole = rows.shape[-1] // of * of
        groups = rows[..., :whole].reshape(-1, of)
        assert np.all((groups == 0).sum(1) == count)
        assert np.all(rows[..., whole:] != 0)


@pytest.mark.parametrize("options", [{"sparsity": 0.6}, {"allocation": "slope"}])
def test_a_pattern_fixes_the_sparsity(options):
    with pytest.raises(UsageError, match="fixes the sparsity"):
        PruneWeights(pattern="2:4", **options)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
def test_slope_zeroes_more_where_it_matters_less_and_as_much_on_the_whole(method):
    text = "two (float[n, 40] x) => (float[n, 20] y) { a = MatMul (x, w1) b = Relu (a) y = MatMul (b, w2) }"
    model = graph(text, {"w1": (40, 32), "w2": (32, 20)})
    array = weight(model, "w1").copy()
    array[:, 8:] *= 0.05  # most of the first layer hardly matters
    model.graph.initializers["w1"].const_value = ir.tensor(array, name="w1")
    step = PruneWeights(allocation="slope", method=method, swaps=2)
    report = bevel.optimize(model, step, calibration=[{"x": correlated()}])
    first, second = zeros(weight(model, "w1")), zeros(weight(model, "w2"))
    assert first + second == (1280 + 640) / 2
    assert second / 640 < 0.5 < first / 1280 <= 0.75
    assert any("zeros of a layer from" in note for note in report.steps[0].notes)


def test_magnitude_drops_the_smallest_of_the_layer():
    model = wide()
    before = weight(model)
    bevel.optimize(model, "prune-weights{sparsity=0.3}")
    smallest = np.sort(np.abs(before), axis=None)[: wanted(0.3, before.size)][-1]
    np.testing.assert_array_equal(weight(model), np.where(np.abs(before) <= smallest, 0, before))


def test_wanda_drops_the_smallest_products_of_each_output():
    x = correlated()
    before = weight(wide())
    _, after = pruned(x, method="wanda", sparsity=0.5)
    norms = np.sqrt((x.astype(np.float64) ** 2).mean(0))
    products = np.abs(before) * np.sqrt(norms**2 + 0.01 * (norms**2).mean())[:, None]
    for column in range(30):
        np.testing.assert_array_equal(
            np.flatnonzero(after[:, column] == 0), np.sort(np.argsort(products[:, column])[:20])
        )


def test_obs_beats_wanda_beats_magnitude_on_correlated_inputs():
    x = correlated()
    errors = [pruned(x, method=method, sparsity=0.6)[0] for method in ("obs", "wanda", "magnitude")]
    assert errors[0] < 0.6 * errors[1]
    assert errors[1] < 0.8 * errors[2]


def test_statistics_that_lie_lose_the_advantage(monkeypatch):
    x = correlated()
    honest, _ = pruned(x, method="obs", sparsity=0.6)

    class Shuffled(SecondOrder):
        def __init__(self, second, damping, *, overwrite):
            order = np.random.default_rng(0).permutation(len(second))
            super().__init__(second[np.ix_(order, order)], damping, overwrite=overwrite)

    monkeypatch.setattr("bevel.passes.fitting.moments.SecondOrder", Shuffled)
    assert pruned(x, method="obs", sparsity=0.6)[0] > 2 * honest


def test_dropping_one_column_is_the_closed_form_optimum():
    """The first input of all: everything after it can make up for it, so that the feedback is exact."""
    rng = np.random.default_rng(0)
    x, w = correlated(width=6), rng.standard_normal((1, 3, 6))
    moment = SecondOrder(x.T @ x / len(x))
    result = w.copy()
    first = np.zeros((1, 3, 6), bool)
    first[..., 0] = True
    prune(result, factor(moment.inverse)[None], lambda scores, start: first[..., start : start + scores.shape[2]])
    best = moment.refit(w[0], np.arange(1, 6))
    np.testing.assert_allclose(result[0, :, 1:], best, rtol=1e-8)
    error = np.sum(((result - w)[0] @ moment.damped) * (result - w)[0])
    assert error == pytest.approx(moment.error(w[0], np.array([0])))


def test_feedback_across_blocks_is_what_one_block_gives(monkeypatch):
    w, x = np.random.default_rng(0).standard_normal((1, 5, 24)), correlated(width=24)
    factors = factor(SecondOrder(x.T @ x / len(x)).inverse)[None]

    def choose(scores, start):
        return lowest_of_every(scores, 2, 4)

    whole, cut = w.copy(), w.copy()
    prune(whole, factors, choose, 4)
    monkeypatch.setattr("bevel.passes.sparsity.feedback.BLOCK", 8)
    prune(cut, factors, choose, 4)
    np.testing.assert_allclose(whole, cut, atol=1e-10)


def search(seed=0, outputs=7, width=16, pattern=False):
    rng = np.random.default_rng(seed)
    x = correlated(width=width, seed=seed)
    original = rng.standard_normal((outputs, width))
    scores = original[None] ** 2
    dropped = (lowest_of_every(scores, 2, 4) if pattern else lowest_by_output(scores, 0.5))[0]
    return Local(original, np.where(dropped, 0.0, original), dropped.copy(), SecondOrder(x.T @ x / len(x)).damped)


@pytest.mark.parametrize("of", [0, 4])
def test_swaps_never_increase_the_error_of_any_output_and_keep_the_count(of):
    local = search(pattern=bool(of))
    counts, errors = local.dropped.sum(1), local.errors
    swapped = 0
    while gained := local.swap(1, of):
        assert np.all(local.errors <= errors + 1e-12)
        assert np.any(local.errors < errors)
        errors, swapped = local.errors, swapped + gained
    assert swapped > 0
    assert np.array_equal(local.dropped.sum(1), counts)
    assert np.array_equal(local.weights == 0, local.dropped)
    if of:
        assert np.all(local.dropped.reshape(-1, of).sum(1) == 2)


def test_a_swap_is_the_best_there_is():
    local = search(outputs=1, width=8)
    before = local.errors[0]
    best = min(
        exchanged(local, kept, back)
        for kept in np.flatnonzero(~local.dropped[0])
        for back in np.flatnonzero(local.dropped[0])
    )
    assert best < before
    local.swap(1)
    assert local.errors[0] == pytest.approx(best)


def exchanged(local, kept, back):
    """The error with one weight dropped and another at its best value, over a fine grid of values."""
    change = (local.weights - local.original)[0].copy()
    change[kept] = -local.original[0, kept]
    gradient = change @ local.moment
    change[back] -= gradient[back] / local.moment[back, back]
    return change @ local.moment @ change


def test_the_kept_gradient_stays_true():
    local = search()
    local.swap(20)
    local.refit(5)
    np.testing.assert_allclose(local._gradient, (local.weights - local.original) @ local.moment, atol=1e-10)


def test_refit_comes_to_the_least_squares_values():
    local = search()
    local.refit(60)
    for row in range(len(local.weights)):
        keep = np.flatnonzero(~local.dropped[row])
        h = local.moment
        best = np.linalg.solve(h[np.ix_(keep, keep)], h[keep] @ local.original[row])
        np.testing.assert_allclose(local.weights[row, keep], best, rtol=1e-5, atol=1e-6)
    assert np.array_equal(local.weights == 0, local.dropped)


def test_swaps_and_refit_lower_the_measured_error():
    x = correlated()
    plain, swapped, refitted = (
        pruned(x, method="wanda", sparsity=0.6, **options)[0]
        for options in ({}, {"swaps": 50}, {"swaps": 50, "refit": 20})
    )
    assert refitted < swapped < plain


def test_outputs_improved_some_at_a_time_are_the_same(monkeypatch):
    x = correlated()
    _, whole = pruned(x, method="wanda", swaps=10, refit=3)
    monkeypatch.setattr("bevel.passes.prune_weights.TOGETHER", 100)
    np.testing.assert_allclose(pruned(x, method="wanda", swaps=10, refit=3)[1], whole, rtol=1e-5)


def test_later_layers_see_what_earlier_zeros_left():
    """With all of the first layer gone the second one reads zeros, so that losing its weights is no error any more."""
    text = "two (float[n, 8] x) => (float[n, 4] y) { a = MatMul (x, w1) b = Relu (a) y = MatMul (b, w2) }"
    model = graph(text, {"w1": (8, 8), "w2": (8, 4)})
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    report = bevel.optimize(model, PruneWeights(method="wanda", sparsity=1.0), calibration=[{"x": x}])
    assert any("0.5 median, 1 worst (w1)" in note for note in report.steps[0].notes)


def test_a_tied_weight_is_left_alone():
    text = "tied (float[n, 6] x) => (float[n, 6] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) }"
    model = graph(text, {"w": (6, 6)})
    report = bevel.optimize(model, "prune-weights")
    assert zeros(weight(model)) == 0
    assert any("left alone: w, used more than once" in note for note in report.steps[0].notes)
    assert any("no layer was found" in note for note in report.steps[0].notes)


def test_only_and_skip():
    model = mlp()
    bevel.optimize(model, "prune-weights{only=w* skip=w1}")
    assert (zeros(weight(model, "w1")), zeros(weight(model, "w2"))) == (0, 12)


def test_the_report_says_what_zeros_gain_and_do_not():
    report = bevel.optimize(wide(), "prune-weights{sparsity=0.75}")
    text = "\n".join(report.steps[0].notes)
    assert "75.00% of the weights of 1 layers are zero" in text
    assert "no time is gained" in text
    assert "as a bitmap and values" in text
    assert report.error > 0


def test_zeros_deflate():
    noise = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    half = np.where(lowest(np.abs(noise)[None, None], 2500)[0, 0], 0, noise)
    assert deflated(half) < 0.75 * deflated(noise)


def test_long_weights_are_judged_by_a_part(monkeypatch):
    noise = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    whole = deflated(noise)
    monkeypatch.setattr("bevel.passes.sparsity.zeros.SAMPLE", 8000)
    assert deflated(noise) == pytest.approx(whole, rel=0.05)


def test_too_few_zeros_break_the_promise():
    model = wide()
    (layer,) = layers(model)
    source = layer.tensor
    put_lazily(layer, lambda weights: np.where(lowest(weights**2, 599), 0.0, weights))
    with pytest.raises(PromiseBroken, match="599 zeros, not 600"):
        Ledger().note(layer, source, 600)


@pytest.mark.parametrize(
    "options", [{}, {"method": "obs"}, {"method": "wanda", "pattern": "2:4", "swaps": 2, "refit": 2}]
)
def test_the_pass_behaves(options):
    check_pass(PruneWeights(**options), mlp(), [{"x": correlated(60, 6)}])


def test_it_works_without_data():
    model = graph(CONVOLUTIONS, KERNELS)
    bevel.optimize(model, "prune-weights{method=obs}")
    assert zeros(weight(model, "plain")) == 144


def test_half_precision_stays():
    text = "half (float16[n, 8] x) => (float16[n, 4] y) { y = MatMul (x, w) }"
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> ' + text)
    array = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    model = bevel.load(proto)
    bevel.optimize(model, "prune-weights{method=obs}")
    assert weight(model).dtype == np.float16
    assert zeros(weight(model)) == 16


def test_magnitude_keeps_the_tensors_it_was_given():
    model = wide()
    given = model.clone()
    before = snapshot(given)
    bevel.optimize(model, "prune-weights")
    assert snapshot(given) == before


def test_the_built_in_model_is_as_good_with_a_tenth_of_its_weights():
    digits = Digits.shipped()

    def accuracy(options):
        model = bevel.load(path("digits.onnx"))
        pipeline = f"fold,prune-weights{{sparsity=0.9 samples=64{options}}}"
        bevel.optimize(model, pipeline, calibration=list(digits.feeds()), verify=False)
        with Session(model) as session:
            (logits,) = session.run({"image": digits.image}).values()
        return float((logits.argmax(1) == digits.label).mean())

    assert accuracy(" method=obs allocation=slope") > 0.98
    assert accuracy("") < 0.5  # by magnitude, the same share of every layer
