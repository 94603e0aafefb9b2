"""Rotations: any size has an even matrix, outliers are spread, the function stays; products are left only on demand."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import EditRefused, UsageError
from bevel.ir.groups import analyse
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.formats import block_format
from bevel.passes.rotation.covariance import covariances, principal
from bevel.passes.rotation.orthogonal import even, hadamard, uniform
from tests import zoo
from tests.graphs import graph

# The rows of `table` that make the stream have two entries 8 times as large as the others.
STREAM = """
stream (float[n, 6] x) => (float[n, 5] y) {
  s = MatMul (x, table)
  a = LayerNormalization (s, gain, shift)
  b = MatMul (a, up)
  c = Gelu (b)
  d = MatMul (c, down)
  e = Add (s, d)
  f = LayerNormalization (e, last, end)
  y = MatMul (f, head)
}
"""
WEIGHTS = {
    **{"table": (6, 32), "gain": (32,), "shift": (32,), "up": (32, 48), "down": (48, 32)},
    **{"last": (32,), "end": (32,), "head": (32, 5)},
}


def stream() -> ir.Model:
    model = graph(STREAM, WEIGHTS)
    down = model.graph.initializers["down"].const_value.numpy().copy()
    down[:, [3, 17]] *= 8
    model.graph.initializers["down"].const_value = ir.tensor(down, name="down")
    return model


def content(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def error(model: ir.Model, name: str) -> float:
    """What rounding to 4 bits in blocks loses of a weight, relative to all of it."""
    array = content(model, name)
    return float(np.square(block_format("int4").round_trip(array, 1, 32) - array).sum() / np.square(array).sum())


# Matrices


@pytest.mark.parametrize("size", [1, 2, 3, 12, 28, 36, 43, 96, 172, 320])
def test_every_size_has_an_orthogonal_matrix_that_is_nearly_even(size: int) -> None:
    matrix = even(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    assert np.abs(matrix).max() <= (2 / size) ** 0.5 + 1e-12


@pytest.mark.parametrize("size", [4, 12, 20, 24, 28, 60, 64, 76, 768])
def test_known_hadamard_sizes_are_perfectly_even(size: int) -> None:
    np.testing.assert_allclose(np.abs(even(size)), size**-0.5)


@pytest.mark.parametrize("make", [hadamard, uniform])
def test_seeds_give_different_matrices(make) -> None:
    first, second = (make(8, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(first, make(8, np.random.default_rng(0))) and not np.array_equal(first, second)


# The pass


@pytest.mark.parametrize("kind", ["hadamard", "random", "klt"])
def test_outliers_are_spread_and_the_function_stays(kind: str) -> None:
    model = stream()
    before, nodes = error(model, "down"), len(list(model.graph))
    (step,) = bevel.optimize(model, f"rotate{{kind={kind}}}").steps
    assert step.verdict.error < 1e-5
    assert error(model, "down") < before / 3
    assert len(list(model.graph)) == nodes
    np.testing.assert_allclose(content(model, "gain"), np.ones(32), rtol=1e-6)
    assert "1 of 4 groups turned, 2 gains folded" in step.notes[0]


def test_principal_axes_even_out_variances() -> None:
    """After `klt` every entry of the stream varies alike; a Hadamard matrix alone leaves what is correlated."""
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((64, 6)).astype(np.float32)} for _ in range(4)]
    spreads = {}
    for kind in ("hadamard", "klt"):
        model = stream()
        bevel.optimize(model, f"rotate{{kind={kind}}}", calibration=feeds)
        (found,) = [each for group, each in moment(model, feeds).items() if group.size == 32]
        variances = np.diag(found)
        spreads[kind] = variances.max() / variances.min()
    assert spreads["klt"] < 2 < 3 < spreads["hadamard"]


def moment(model: ir.Model, feeds: list[dict[str, np.ndarray]]):
    analysis = analyse(model)
    context = Context(0, Calibration.of(feeds, model), Execution())
    return covariances(analysis, analysis.groups, context)


def test_principal_axes_are_sorted() -> None:
    np.testing.assert_allclose(np.abs(principal(np.diag([1.0, 5.0, 3.0]))), np.eye(3)[[1, 2, 0]])


def test_a_group_whose_gain_has_a_zero_is_left_alone_and_named() -> None:
    model = stream()
    gain = content(model, "last").copy()
    gain[5] = 0
    model.graph.initializers["last"].const_value = ir.tensor(gain, name="last")
    (step,) = bevel.optimize(model, "rotate").steps
    assert any("'last' has entries that are zero" in note for note in step.notes)
    assert "0 of 4 groups turned" in step.notes[0]


def test_what_is_skipped_stays() -> None:
    model = stream()
    before = content(model, "down").copy()
    bevel.optimize(model, "rotate{skip=table*}")
    assert np.array_equal(content(model, "down"), before)


# Products in the graph


def test_a_hidden_layer_turns_online() -> None:
    model = stream()
    nodes = len(list(model.graph))
    (step,) = bevel.optimize(model, "rotate{online=down}").steps
    assert step.verdict.error < 1e-5
    assert len(list(model.graph)) == nodes + 1
    assert any("1 products are left in the graph" in note for note in step.notes)
    matrix = next(value.const_value.numpy() for name, value in model.graph.initializers.items() if "turned" in name)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(48), atol=1e-6)
    assert np.abs(matrix).max() < 0.2


def test_a_tied_head_lets_the_stream_turn_behind_a_product() -> None:
    path = zoo.path("gpt", "dynamo")
    plain, online = bevel.load(path), bevel.load(path)
    (step,) = bevel.optimize(plain, "rotate").steps
    (other,) = bevel.optimize(online, "rotate{online=head.weight}").steps
    assert "0 gains folded" in step.notes[0] and "5 gains folded" in other.notes[0]
    assert other.verdict.error < 1e-5


def test_a_pattern_that_names_no_weight_is_refused() -> None:
    with pytest.raises(UsageError, match="no weight of a layer matches downn"):
        bevel.optimize(stream(), "rotate{online=downn}")


def test_no_product_goes_in_front_of_a_convolution() -> None:
    model = graph("g (float[n, 4, 5, 5] x) => (float[n, 3, 3, 3] y) { y = Conv (x, w) }", {"w": (3, 4, 3, 3)})
    with pytest.raises(EditRefused, match="Conv does not sum over the last axis"):
        bevel.optimize(model, "rotate{online=w}")
