import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import PromiseBroken, UsageError
from bevel.passes.fitting.layers import layers
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.prune_tiles import PruneTiles
from bevel.passes.sparsity.tiles import Tile, errors_alone, refit
from bevel.testing import check_pass
from tests.graphs import graph, mlp
from tests.passes.test_prune_weights import (
    CONVOLUTIONS,
    KERNELS,
    correlated,
    images,
    layer_error,
    weight,
    wide,
    zeros,
)

TWO = "two (float[n, 40] x) => (float[n, 20] y) { a = MatMul (x, w1) b = Relu (a) y = MatMul (b, w2) }"


def pruned(x, **options):
    model = wide()
    before = weight(model)
    bevel.optimize(model, PruneTiles(**options), calibration=[{"x": x}])
    return layer_error(before, weight(model), x), weight(model)


def whole_tiles(matrix, outputs, inputs):
    """How many tiles are zero throughout and how many have no zero; the rest are neither."""
    parts = [
        matrix[row : row + outputs, column : column + inputs]
        for row in range(0, matrix.shape[0], outputs)
        for column in range(0, matrix.shape[1], inputs)
    ]
    return sum(not part.any() for part in parts), sum(bool(part.all()) for part in parts), len(parts)


@pytest.mark.parametrize("tile", ["4x4", "1x4", "4x1", "16x16", "7x3"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
def test_tiles_go_or_stay_as_one(tile, method):
    _, after = pruned(correlated(), tile=tile, method=method, sparsity=0.4)
    outputs, inputs = map(int, tile.split("x"))
    empty, full, total = whole_tiles(after.T, outputs, inputs)
    assert empty == round(0.4 * total)
    assert empty + full == total


@pytest.mark.parametrize("tile", ["2x2", "4x1"])
def test_the_taps_of_a_kernel_go_together(tile):
    model = graph(CONVOLUTIONS, KERNELS)
    bevel.optimize(model, PruneTiles(tile=tile, method="obs", refit=True), calibration=images())
    outputs, inputs = map(int, tile.split("x"))
    for layer in layers(model):
        for matrix in layer.matrices(layer.tensor.numpy()):
            empty, full, total = whole_tiles(matrix, outputs, inputs * layer.taps)
            assert empty + full == total, layer.weight.name
    assert zeros(weight(model, "plain")) == 144


def test_one_by_one_is_plain_magnitude():
    first, second = wide(), wide()
    bevel.optimize(first, "prune-tiles{tile=1x1}")
    bevel.optimize(second, "prune-weights")
    np.testing.assert_array_equal(weight(first), weight(second))


def test_a_layer_keeps_a_tile_unless_all_are_to_go():
    model = mlp()
    bevel.optimize(model, "prune-tiles{tile=64x64 sparsity=0.9}")
    assert zeros(weight(model, "w1")) == 0
    bevel.optimize(model, "prune-tiles{tile=64x64 sparsity=1.0}")
    assert zeros(weight(model, "w1")) == 48


def test_errors_alone_are_the_closed_form_and_what_refit_leaves():
    rng = np.random.default_rng(0)
    x, w, tile = correlated(width=8), rng.standard_normal((1, 2, 8)), Tile(2, 4)
    moment = SecondOrder(x.T @ x / len(x))
    found = errors_alone(w, [moment], tile)
    assert found.shape == (1, 1, 2)
    assert found[0, 0, 1] == pytest.approx(moment.error(w[0], np.arange(4, 8)))
    dropped = tile.spread(np.array([[[False, True]]]), w.shape)
    change = (refit(w, dropped, [moment], tile) - w)[0]
    assert found[0, 0, 1] == pytest.approx(np.sum((change @ moment.damped) * change))


def test_tiles_at_the_ends_count_as_they_are():
    tile, values = Tile(4, 3), np.arange(35.0).reshape(1, 5, 7)
    sums = tile.sums(values)
    assert sums.shape == (1, 2, 3)
    assert sums[0, 1, 2] == values[0, 4, 6]
    assert sums.sum() == values.sum()


def test_obs_and_refit_beat_wanda_beats_magnitude_on_correlated_inputs():
    x = correlated()
    refitted, obs, wanda, magnitude = (
        pruned(x, tile="1x4", sparsity=0.5, **options)[0]
        for options in ({"method": "obs", "refit": True}, {"method": "obs"}, {"method": "wanda"}, {})
    )
    assert refitted < 0.5 * wanda
    assert refitted < obs
    assert wanda < magnitude


def test_outputs_that_lose_nothing_stay_bit_for_bit():
    rng = np.random.default_rng(0)
    x, w, tile = correlated(width=8), rng.standard_normal((1, 4, 8)), Tile(2, 4)
    dropped = tile.spread(np.array([[[False, True], [False, False]]]), w.shape)
    result = refit(w, dropped, [SecondOrder(x.T @ x / len(x))], tile)
    assert result[0, 2:].tobytes() == w[0, 2:].tobytes()
    assert not np.array_equal(result[0, :2, :4], w[0, :2, :4])


def test_refit_helps_any_mask():
    x = correlated()
    for method in ("magnitude", "wanda", "obs"):
        plain, refitted = (pruned(x, tile="4x4", method=method, refit=each)[0] for each in (False, True))
        assert refitted < plain


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
def test_slope_meets_the_budget_and_favours_what_needs_less(method):
    model = graph(TWO, {"w1": (40, 32), "w2": (32, 20)})
    array = weight(model, "w1").copy()
    array[:, 8:] *= 0.05  # most of the first layer hardly matters
    model.graph.initializers["w1"].const_value = ir.tensor(array, name="w1")
    report = bevel.optimize(
        model, PruneTiles(tile="4x4", allocation="slope", method=method), calibration=[{"x": correlated()}]
    )
    first, second = zeros(weight(model, "w1")), zeros(weight(model, "w2"))
    total = 40 * 32 + 32 * 20
    assert 0 <= first + second - total / 2 < 16
    assert first / 1280 > second / 640
    assert second / 640 < 0.5
    assert first / 1280 <= 0.75
    assert any("zeros of a layer from" in note for note in report.steps[0].notes)


@pytest.mark.parametrize("tile", ["16", "0x4", "4x", "axb", "4x4x4"])
def test_what_is_no_tile_is_refused(tile):
    with pytest.raises(UsageError, match=r"prune-tiles: .* is no tile"):
        PruneTiles(tile=tile)


def test_zeros_that_are_missing_are_seen(monkeypatch):
    monkeypatch.setattr("bevel.passes.prune_tiles.refit", lambda weights, dropped, each, tile: weights)
    with pytest.raises(PromiseBroken, match="0 zeros, not"):
        pruned(correlated(), method="obs", refit=True, tile="4x4")


@pytest.mark.parametrize(
    "options",
    [{"tile": "2x2"}, {"tile": "2x2", "method": "obs", "refit": True, "allocation": "slope"}, {"tile": "1x4"}],
)
def test_the_pass_behaves(options):
    step = check_pass(PruneTiles(**options), mlp(), [{"x": correlated(60, 6)}])
    assert any("no time is gained" in note for note in step.notes)
