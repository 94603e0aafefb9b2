"""GPTQ without the inverse, beside GPTQ as it is written in the paper."""

import numpy as np
import pytest

from bevel.passes.fitting.second_order import DAMPING
from bevel.passes.fitting.triangular import factor
from bevel.passes.formats import Grid, block_format
from bevel.passes.quantization.feedback import TOGETHER, compensated


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def moment(rng, size):
    """Of inputs that go together, some larger than others."""
    rows = rng.standard_normal((2 * size, size)) @ rng.standard_normal((size, size)) * rng.uniform(0.5, 2, size)
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("size", [1, 64, 65, 200])
def test_the_factor_is_that_of_cholesky(rng, size):
    given = moment(rng, size) / size + np.eye(size)
    found = given.astype(np.float32)
    factor(found)
    np.testing.assert_allclose(found, np.linalg.cholesky(given), atol=1e-4)
    assert not np.triu(found, 1).any()


@pytest.mark.parametrize("place", [0, 99])
def test_what_is_not_positive_has_no_factor(place):
    given = np.eye(100, dtype=np.float32)
    given[place, place] = -1
    with pytest.raises(np.linalg.LinAlgError):
        factor(given)


def by_the_paper(fmt, weights, grid, second):
    """Column by column with the inverse of the damped moment, the largest input first."""
    order = np.argsort(-np.diag(second), kind="stable")
    damped = second + DAMPING * np.diag(second).mean() * np.eye(len(second))
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    rest, values = weights[order].astype(np.float64), np.empty_like(weights)
    for place, which in enumerate(order):
        values[which] = fmt.rounded(rest[place].astype(np.float32), grid[which])
        lost = (rest[place] - values[which]) / upper[place, place]
        rest[place:] -= upper[place, place:, None] * lost
    return values


def test_the_codes_are_those_of_the_paper_and_the_error_is_what_is_left(rng):
    size, outputs, fmt = 3 * TOGETHER + 5, 7, block_format("uint3")
    second, weights = moment(rng, size), rng.standard_normal((size, outputs)).astype(np.float32)
    grid = Grid(np.full(weights.shape, 0.5, np.float32), np.full(weights.shape, 4, np.float32))
    codes, lost = compensated(fmt, weights[None], Grid(grid.scale[None], grid.zero[None]), second[None])
    values = fmt.values(codes[0], grid)
    np.testing.assert_array_equal(values, by_the_paper(fmt, weights, grid, second))

    def error(values):
        change = values - weights
        return np.vdot(change, second @ change) / np.vdot(weights, second @ weights)

    assert lost == pytest.approx(error(values), rel=1e-3)
    assert error(fmt.rounded(weights, grid)) > 2 * lost  # without feedback


@pytest.mark.parametrize("name", ["int3", "uint4", "bfp4", "nf4"])
def test_misses_are_distances_from_the_nearest_values_in_units_of_the_scale(rng, name):
    fmt, blocks = block_format(name), 2 * rng.standard_normal((1, 1, 16, 8)).astype(np.float32)
    grid = fmt.grid(blocks)
    shrunk = Grid(grid.scale / 2, grid.zero)  # so that some are clipped
    wanted = (blocks - fmt.rounded(blocks, shrunk)) / shrunk.scale
    np.testing.assert_allclose(fmt.misses(blocks, shrunk), wanted, atol=1e-5)
    assert np.abs(wanted).max() > np.abs(fmt.misses(blocks, grid)).max()
