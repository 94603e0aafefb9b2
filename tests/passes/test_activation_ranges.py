"""Histograms, the ranges chosen from them, and grids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.passes.activations.grids import bias_codes, coded, least_scale, spanning
from bevel.passes.activations.histogram import BINS, Histogram, entropy, least_squares, percentile

RNG = np.random.default_rng(0)
NUMBERS = st.floats(-1e6, 1e6, width=32, allow_nan=False)


def histogram(*arrays):
    found = Histogram()
    for array in arrays:
        found.add(np.asarray(array, np.float32))
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=1, max_size=3))
def test_every_value_is_counted_in_the_bin_that_it_lies_in(parts):
    found = histogram(*parts)
    values = np.concatenate([np.asarray(part, np.float32) for part in parts])
    if not found.width:
        assert not values.any()
        return
    assert found.counts.sum() == values.size and len(found.counts) <= BINS
    assert (found.low, found.high) == (min(values.min(), 0), max(values.max(), 0))
    edges = (found.first + np.arange(len(found.counts) + 1)) * found.width
    slack = found.width * 1e-3  # bins are joined later, and edges rounded
    for place in np.flatnonzero(found.counts):
        assert ((values >= edges[place] - slack) & (values <= edges[place + 1] + slack)).any()


def test_an_outlier_does_not_rule_the_range():
    values = RNG.standard_normal(100_000)
    found = histogram(values, [400.0])
    for low, high in (percentile(found, 99.9), entropy(found)):
        assert -8 < low < -2 and 2 < high < 60


def test_least_squares_lose_less_than_the_extremes_and_than_other_ranges():
    values = np.concatenate([RNG.standard_normal(100_000), [15.0, -12.0]])
    found = histogram(values)
    spans = (least_squares(found), (found.low, found.high), percentile(found, 99), (-2, 2), (-1, 15))
    best, *others = (np.square(spanning(*span).round_trip(values) - values).mean() for span in spans)
    assert all(best < 0.9 * other for other in others)


@pytest.mark.parametrize("choose", [least_squares, entropy, lambda found: percentile(found, 99.9)])
def test_ranges_without_outliers_are_kept_nearly_whole(choose):
    low, high = choose(histogram(RNG.uniform(0, 6, 100_000)))
    assert 0 <= low < 0.01 and 5 < high <= 6


def test_a_percentile_holds_its_share():
    values = RNG.standard_normal(50_000)
    low, high = percentile(histogram(values), 99)
    assert ((values >= low) & (values <= high)).mean() == pytest.approx(0.99, abs=2e-3)


@settings(max_examples=50, deadline=None)
@given(NUMBERS, NUMBERS)
def test_zero_is_exact_and_the_ends_are_half_a_step_off_at_most(one, other):
    low, high = min(one, other), max(one, other)
    grid = spanning(low, high)
    assert grid.round_trip(np.zeros(1))[0] == 0 and 0 <= grid.zero <= 255
    if max(abs(low), abs(high)) > 1e-30:
        ends = np.array([min(low, 0), max(high, 0)])
        assert np.abs(grid.round_trip(ends) - ends).max() <= 0.51 * float(grid.scale)
        below, above = grid.looser.ends
        assert below < grid.ends[0] and above > grid.ends[1]


def test_a_grid_stays_within_the_bounds_of_a_clip():
    for bound in RNG.uniform(0.1, 10, 50).astype(np.float32):
        grid = spanning(-float(bound), float(bound), within=(-float(bound), float(bound)))
        below, above = grid.ends
        assert -bound <= below and above <= bound


def test_weights_are_half_a_step_off_at_most_and_a_large_bias_fits_32_bits():
    weights, bias = RNG.standard_normal((5, 7)).astype(np.float32), np.array([0, 1, 1e3, -1e9, 1e-3], np.float32)
    found = coded(weights, 0, least_scale(bias, np.float32(0.01)))
    assert (np.abs(found.decode() - weights) <= found.scale[:, None] * 0.501).all()
    codes = bias_codes(bias, found.scale * np.float32(0.01))
    assert np.abs(codes.astype(np.int64)).max() <= (1 << 30) + 1000
    np.testing.assert_allclose(codes * (found.scale * np.float32(0.01)), bias, rtol=1e-6, atol=1e-4)
