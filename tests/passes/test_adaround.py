"""Codes that are learnt, or settled one input after the other."""

import numpy as np
import pytest

from bevel.passes.formats import Grid, block_format
from bevel.passes.quantization import adaround
from bevel.passes.quantization.feedback import compensated
from tests.passes.test_prune_weights import correlated

INPUTS, OUTPUTS = 40, 12


@pytest.fixture(scope="module")
def layer():
    """A format, weights, the grid of each, and the second moments of what they read."""
    weights = np.random.default_rng(3).standard_normal((1, INPUTS, OUTPUTS)).astype(np.float32)
    x, fmt = correlated(rows=160, width=INPUTS), block_format("uint2")
    grid = fmt.grid(weights[:, None])
    whole = (np.ascontiguousarray(np.broadcast_to(each[0], weights.shape)) for each in (grid.scale, grid.zero))
    return fmt, weights, Grid(*whole), (x.T @ x / len(x))[None].astype(np.float64)


def lost(layer, codes):
    """The squared error of each output."""
    fmt, weights, grid, (moment,) = layer
    change = fmt.values(codes, grid)[0] - weights[0]
    return np.einsum("io,ij,jo->o", change, moment, change)


def nearest(fmt, weights, grid, _):
    return fmt.codes(weights, grid)


def test_each_output_has_the_better_of_two(layer, monkeypatch):
    both = lost(layer, adaround.adaptive(*layer)[0])
    monkeypatch.setattr(adaround, "_learnt", nearest)
    settled = lost(layer, adaround.adaptive(*layer)[0])
    assert (both <= settled * (1 + 1e-6)).all() and both.sum() < 0.99 * settled.sum()
    assert settled.sum() <= lost(layer, compensated(*layer)[0]).sum()


def test_without_sweeps_it_is_gptq_or_the_nearest(layer, monkeypatch):
    monkeypatch.setattr(adaround, "SWEEPS", 0)
    monkeypatch.setattr(adaround, "_learnt", nearest)
    codes = adaround.adaptive(*layer)[0]
    either = [compensated(*layer)[0], nearest(*layer)]
    assert all(
        any(np.array_equal(codes[0, :, place], each[0, :, place]) for each in either) for place in range(OUTPUTS)
    )


@pytest.mark.parametrize("together", [1, 7, INPUTS])
def test_it_makes_no_difference_how_many_inputs_reach_the_others_together(layer, monkeypatch, together):
    usual = adaround.adaptive(*layer)
    monkeypatch.setattr(adaround, "TOGETHER", together)
    monkeypatch.setattr(adaround, "OUTPUTS", together)
    error = adaround.adaptive(*layer)[1]
    assert error == pytest.approx(usual[1], rel=0.02)  # where sums are all but equal, their order decides
