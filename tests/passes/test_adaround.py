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


def test_settling_gains_and_learning_more(layer):
    errors = [choose(*layer)[1] for choose in (compensated, adaround.settled, adaround.adaptive)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < errors[1]


def test_no_output_loses_by_learning(layer):
    fmt, weights, grid, (moment,) = layer
    lost = []
    for choose in (adaround.settled, adaround.adaptive):
        change = fmt.values(choose(*layer)[0], grid)[0] - weights[0]
        lost.append(np.einsum("io,ij,jo->o", change, moment, change))
    assert (lost[1] <= lost[0] * (1 + 1e-6)).all()


def test_without_sweeps_codes_are_those_of_gptq(layer, monkeypatch):
    monkeypatch.setattr(adaround, "SWEEPS", 0)
    assert np.array_equal(adaround.settled(*layer)[0], compensated(*layer)[0])


@pytest.mark.parametrize("together", [1, 7, INPUTS])
def test_it_makes_no_difference_how_many_inputs_reach_the_others_together(layer, monkeypatch, together):
    usual = adaround.settled(*layer)
    monkeypatch.setattr(adaround, "TOGETHER", together)
    monkeypatch.setattr(adaround, "OUTPUTS", together)
    assert np.array_equal(adaround.settled(*layer)[0], usual[0])
