"""Codebooks that are learnt from each weight: nearer than fixed ones, with a zero, stored with their levels."""

import numpy as np
import pytest

import bevel
from bevel.passes.formats import block_format
from bevel.passes.formats.learned import clusters, mixture
from tests.graphs import graph
from tests.passes.test_quantize_blocks import (
    DENSE,
    ROUNDING,
    TABLES,
    WEIGHTS,
    WORDS,
    off,
    operators,
    rounded_in_numpy,
    run,
)


def gaussian(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def error(x, name, axis=1, block=32):
    return float(np.square(block_format(name).round_trip(x, axis, block) - x).sum())


@pytest.mark.parametrize("name", ["kmeans2", "kmeans3", "kmeans4", "dgms3", "dgms4"])
def test_zero_is_a_level_and_stays_zero(name):
    x = gaussian(16, 40)
    x[:, ::7] = 0
    found = block_format(name).encode(x, 1, 20)
    levels = found.format.levels
    assert (levels == 0).sum() == 1 and len(levels) == 1 << int(name[-1])
    assert (found.decode()[:, ::7] == 0).all()
    assert (np.diff(levels) > 0).all()


def test_what_is_learnt_is_nearer_than_what_is_fixed():
    x = gaussian(64, 256)
    for axis, block in ((1, 32), (1, 128), (None, 0)):
        assert error(x, "kmeans4", axis, block) < error(x, "nf4", axis, block)
        assert error(x, "kmeans3", axis, block) < error(x, "int3", axis, block)
    skewed = np.exp(x)  # far from what a fixed codebook is made for
    assert error(skewed, "kmeans4") < 0.8 * error(skewed, "nf4")
    assert error(skewed, "dgms4") < 0.8 * error(skewed, "nf4")


def test_as_many_values_as_levels_are_kept():
    values = np.float32([0, 0.11, -0.37, 0.93])
    x = values[np.random.default_rng(1).integers(0, 4, (20, 30))]
    np.testing.assert_allclose(block_format("kmeans2").round_trip(x, None, 0), x, atol=1e-6)
    other = np.where(x == values[1], np.float32(0.5), x) + np.float32(0.2)  # five values, for zero must be one
    assert not np.allclose(block_format("kmeans2").round_trip(other, None, 0), other, atol=1e-2)


def test_clusters_leave_no_more_than_any_other_levels_nearby():
    points, heavy = np.sort(gaussian(500)).astype(np.float64), np.abs(gaussian(500)).astype(np.float64)

    def left(levels):
        return heavy @ np.square(points[:, None] - levels).min(1)

    found = clusters(points, heavy, np.linspace(-1, 1, 8))
    for place in np.flatnonzero(found):
        for step in (-0.05, 0.05):
            moved = found.copy()
            moved[place] += step
            assert left(moved) > left(found)


def test_a_mixture_finds_the_components():
    rng = np.random.default_rng(3)
    parts = [rng.normal(0, 0.02, 600), rng.normal(0.5, 0.02, 300), rng.normal(-0.8, 0.05, 100)]
    points = np.sort(np.concatenate(parts))
    found = np.sort(mixture(points, np.ones(1000), np.array([-0.3, 0.0, 0.1])))
    np.testing.assert_allclose(found, [-0.8, 0, 0.5], atol=0.02)


@pytest.mark.parametrize(("name", "axis", "block"), [("kmeans3", "in", 20), ("dgms4", "flat", 0)])
@pytest.mark.parametrize(("text", "weights"), [(DENSE, WEIGHTS), (WORDS, TABLES)])
def test_models_equal_numpy(name, axis, block, text, weights):
    model = graph(text, weights)
    bevel.optimize(model, f"quantize-blocks{{format={name} axis={axis} block={block} emit=portable}}")
    assert not any(node.domain for node in model.graph)
    assert off(model, rounded_in_numpy(text, weights, name, axis, block), text) < ROUNDING
    assert off(model, rounded_in_numpy(text, weights, "nf4", axis, block), text) > ROUNDING  # negative control
    levels = [value for name, value in model.graph.initializers.items() if name.endswith(".levels")]
    assert len(levels) == sum(name not in ("bias",) for name in weights)


@pytest.mark.parametrize("rounding", ["clip", "gptq"])
def test_levels_are_learnt_whatever_the_rounding(rounding):
    errors, x = [], {"x": gaussian(2000, 48)}
    for name in ("kmeans3", "int3"):
        model = graph(DENSE, WEIGHTS)
        spec = f"quantize-blocks{{format={name} block=64 rounding={rounding} emit=portable}}"
        bevel.optimize(model, spec, calibration=[x])
        errors.append(np.linalg.norm(run(model, x) - run(graph(DENSE, WEIGHTS), x)))
    assert errors[0] < errors[1]


def test_no_kernel_has_such_levels():
    model = graph(DENSE, WEIGHTS)
    report = bevel.optimize(model, "quantize-blocks{format=kmeans4}")
    assert "MatMulNBits" not in operators(model)
    assert "no kernel has the levels of kmeans4: first, second, third" in "\n".join(report.steps[0].notes)
