"""Scales, rotations and linear maps are carried out: real networks compute what they did, in other coordinates."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from bevel.errors import EditRefused, UsageError
from bevel.ir import transform as room
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, analyse
from bevel.ir.mixing import keeping_mean
from bevel.ir.symmetry import Symmetry
from bevel.ir.transform import Move, move, rotate, scale, transform
from bevel.passes.base import REASSOCIATION_RTOL
from tests import zoo
from tests.graphs import graph

KINDS = (Freedom.SCALE, Freedom.ROTATE, Freedom.LINEAR)
# All that have something to move: recurrent and gated networks have not.
NETWORKS = [name for name in zoo.NAMES if name not in ("lstm", "gru", "gated", "gpt-fresh")]

FEED_FORWARD = """
mlp (float[n, 6] x) => (float[n, 3] y) {
  h = Gemm (x, up, bias)
  r = Relu (h)
  y = MatMul (r, down)
}
"""
STREAM = """
stream (float[n, 5] x) => (float[n, 4] y) {
  s = MatMul (x, table)
  a = LayerNormalization (s, gain, shift)
  b = MatMul (a, up)
  c = Sigmoid (b)
  d = MatMul (c, down)
  e = Add (s, d)
  f = LayerNormalization (e, last)
  y = MatMul (f, head)
}
"""
STREAM_WEIGHTS = {
    **{"table": (5, 8), "gain": (8,), "shift": (8,), "up": (8, 12)},
    **{"down": (12, 8), "last": (8,), "head": (8, 4)},
}


def factor(kind: Freedom, size: int, random: np.random.Generator, *, keeps_mean: bool = False) -> np.ndarray:
    if kind is Freedom.SCALE:
        return random.uniform(0.5, 2, size)
    left, right = (np.linalg.qr(random.standard_normal((size, size)))[0] for _ in range(2))
    if kind is Freedom.ROTATE:
        return keeping_mean(left) if keeps_mean else left
    return np.asarray(left * np.geomspace(0.5, 2, size) @ right)


def moves(analysis: Analysis, kind: Freedom) -> Iterator[Move]:
    """Move everything that can, each by factors of its own."""
    random = np.random.default_rng(0)
    for group in analysis.groups:
        for motion in group.motions(kind):
            if motion.initializers:
                yield Move(group, motion, factor(kind, group.size, random, keeps_mean=motion.keeps_mean))


def outputs(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    with Session(model, level=Level.AS_WRITTEN, threads=1) as session:
        (found,) = session.run(feed).values()
    return found


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_they_did(name: str) -> None:
    loaded, (feed, expected), *_ = bevel.load(zoo.path(name, "dynamo")), *zoo.trials(name)
    for kind in KINDS:
        model = loaded.clone()
        before, analysis = weights(model), analyse(model)
        found = list(moves(analysis, kind))
        move(analysis, found)
        assert [node.op_type for node in model.graph] == [node.op_type for node in loaded.graph]
        assert difference(outputs(model, feed), expected) < REASSOCIATION_RTOL
        after = weights(model)
        for place in {place for each in found for place in each.motion.initializers}:
            old = before[place.value.name]
            assert not old.any() or not np.allclose(old, after[place.value.name])


@pytest.mark.parametrize("style", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["llama", "vit"])
def test_residual_streams_turn_whether_norms_are_written_out_or_not(name: str, style: str) -> None:
    analysis = analyse(bevel.load(zoo.path(name, style)))
    stream = max(analysis.groups, key=lambda group: len(group.members))
    (motion,) = [each for each in stream.motions("rotate") if len(each.folds) > 1]
    assert motion.keeps_mean == (name == "vit")


def test_a_head_that_is_tied_to_the_embedding_keeps_the_last_gain_from_folding() -> None:
    analysis = analyse(bevel.load(zoo.path("gpt", "dynamo")))
    stream = max(analysis.groups, key=lambda group: len(group.members))
    assert "does not commute with its gain" in stream.why("rotate")[-1]


# Keys


def test_a_group_with_one_motion_goes_by_its_name() -> None:
    model = graph(FEED_FORWARD, {"up": (6, 8), "bias": (8,), "down": (8, 3)})
    before = weights(model)
    factors = np.arange(1.0, 9.0)
    scale(model, {"up[1]": factors})
    after = weights(model)
    np.testing.assert_allclose(after["up"], before["up"] * factors, rtol=1e-6)
    np.testing.assert_allclose(after["bias"], before["bias"] * factors, rtol=1e-6)
    np.testing.assert_allclose(after["down"], before["down"] / factors[:, None], rtol=1e-6)


def test_the_named_place_is_what_is_multiplied() -> None:
    model = graph(FEED_FORWARD, {"up": (6, 8), "bias": (8,), "down": (8, 3)})
    before = weights(model)
    scale(model, {"down[0]": np.full(8, 4.0)})
    assert np.array_equal(weights(model)["down"], before["down"] * 4)
    assert np.array_equal(weights(model)["up"], before["up"] / 4)


def test_a_gain_names_its_own_motion_and_the_stream_none() -> None:
    model = graph(STREAM, STREAM_WEIGHTS)
    before = weights(model)
    scale(model, {"gain[0]": np.full(8, 2.0)})
    after = weights(model)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"gain", "shift", "up"}
    with pytest.raises(EditRefused, match="2 things can move along it") as refused:
        scale(model, {"table[1]": np.full(8, 2.0)})
    assert "gain[0]" in str(refused.value)


def test_a_key_that_names_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="'upp\\[1\\]'"):
        scale(graph(FEED_FORWARD, {"up": (6, 8), "bias": (8,), "down": (8, 3)}), {"upp[1]": np.ones(8)})


# What is refused


@pytest.mark.parametrize(
    ("edit", "key", "given", "why"),
    [
        (scale, "up[1]", np.zeros(8), "positive"),
        (scale, "up[1]", np.full(8, np.inf), "finite"),
        (scale, "up[1]", np.ones(6), "needed"),
        (rotate, "up[1]", np.eye(8), "works on each entry by itself"),
        (transform, "up[0]", np.eye(6), "graph input"),
    ],
)
def test_what_cannot_move_is_refused_before_anything_is_written(edit, key, given, why) -> None:
    model = graph(FEED_FORWARD, {"up": (6, 8), "bias": (8,), "down": (8, 3)})
    before = weights(model)
    with pytest.raises(EditRefused, match=why):
        edit(model, {key: given})
    assert all(np.array_equal(before[name], array) for name, array in weights(model).items())


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (2 * np.eye(8), "orthogonal"),
        (np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0], "keeps the mean"),
        (np.ones((8, 8)), "condition number"),
    ],
)
def test_a_matrix_of_another_kind_is_refused(matrix: np.ndarray, why: str) -> None:
    with pytest.raises(EditRefused, match=why):
        rotate(graph(STREAM, STREAM_WEIGHTS), {"table[1]": matrix})


def turned(model: ir.Model) -> ir.Model:
    rotate(model, {"table[1]": keeping_mean(np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0])})
    return model


def with_gain(values: list[float], **more: np.ndarray) -> ir.Model:
    model = graph(STREAM, STREAM_WEIGHTS)
    for name, array in {"gain": np.array(values), **more}.items():
        model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    return model


FEED = {"x": np.random.default_rng(2).standard_normal((7, 5)).astype(np.float32)}


def test_negative_gains_are_folded_where_nothing_minds() -> None:
    model = with_gain([1, -2, 3, -4, 5, 6, 7, 8])
    expected = outputs(model, FEED)
    assert difference(outputs(turned(model), FEED), expected) < REASSOCIATION_RTOL
    assert np.array_equal(model.graph.initializers["gain"].const_value.numpy(), np.ones(8))


def test_a_gain_of_zero_is_refused() -> None:
    with pytest.raises(EditRefused, match="'gain' has entries that are zero"):
        turned(with_gain([1, 0, 3, 4, 5, 6, 7, 8]))


def test_a_scale_may_be_negative_where_nothing_wants_positive_factors() -> None:
    weights = {"up": (6, 8), "bias": (8,), "down": (8, 3)}
    for between, signed in (("Relu", False), ("Neg", True)):
        group = analyse(graph(FEED_FORWARD.replace("Relu", between), weights))["up[1]"]
        (motion,) = group.motions("scale")
        assert group.symmetry.signed(motion) is signed


def test_negative_gains_are_refused_where_only_positive_factors_pass(monkeypatch) -> None:
    monkeypatch.setattr(Symmetry, "signed", lambda self, motion: False)
    turned(with_gain([1, 2, 3, 4, 5, 6, 7, 8], last=np.ones(8)))
    with pytest.raises(EditRefused, match="'gain' has negative entries"):
        turned(with_gain([1, -2, 3, -4, 5, 6, 7, 8], last=np.ones(8)))


def test_a_stream_that_a_relu_reads_does_not_turn() -> None:
    text = STREAM.replace("b = MatMul (a, up)", "r = Relu (a)  b = MatMul (r, up)")
    assert not analyse(graph(text, STREAM_WEIGHTS))["table[1]"].allows("rotate")


def test_a_product_with_weights_is_a_gain() -> None:
    text = """
    gained (float[n, 5] x) => (float[n, 4] y) {
      s = MatMul (x, table)
      a = Mul (s, gain)
      y = MatMul (a, head)
    }
    """
    assert difference(*both(graph(text, {"table": (5, 8), "gain": (8,), "head": (8, 4)}))) < REASSOCIATION_RTOL


def both(model: ir.Model) -> tuple[np.ndarray, np.ndarray]:
    """Return what a model gives after a rotation that may be any, and what it gave before."""
    expected = outputs(model, FEED)
    rotate(model, {"table[1]": np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0]})
    return outputs(model, FEED), expected


# Planted lies


def test_a_gain_that_is_not_folded_shows(monkeypatch) -> None:
    model = graph(STREAM, STREAM_WEIGHTS)
    expected = outputs(model, FEED)
    monkeypatch.setattr(room, "_fold", lambda group, gain, gains: Move(group, group.motions("scale")[0], np.ones(8)))
    assert difference(outputs(turned(model), FEED), expected) > 1e-2


@pytest.mark.parametrize("missed", ["bias", "down"])
def test_a_tensor_that_is_forgotten_shows(missed: str) -> None:
    model = graph(FEED_FORWARD, {"up": (6, 8), "bias": (8,), "down": (8, 3)})
    feed = {"x": np.random.default_rng(2).standard_normal((7, 6)).astype(np.float32)}
    expected, before = outputs(model, feed), weights(model)
    scale(model, {"up[1]": np.geomspace(0.5, 2, 8)})
    assert difference(outputs(model, feed), expected) < REASSOCIATION_RTOL
    model.graph.initializers[missed].const_value = ir.tensor(before[missed], name=missed)
    assert difference(outputs(model, feed), expected) > 1e-2


def test_a_rotation_that_moves_the_mean_shows(monkeypatch) -> None:
    model = graph(STREAM, STREAM_WEIGHTS)
    expected = outputs(model, FEED)
    monkeypatch.setattr(room, "check", lambda each: None)
    rotate(model, {"table[1]": np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]})
    assert difference(outputs(model, FEED), expected) > 1e-2


def test_a_tensor_may_move_any_number_of_times():
    model = graph(
        "n (float[2, 4] x) => (float[2, 3] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }", {"w1": (4, 5), "w2": (5, 3)}
    )
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    factor = np.array([1.01, 0.99, 1.0, 1.02, 0.98])
    for _ in range(1500):  # more often than Python calls nest
        scale(model, {"w1[1]": factor})
    for name, power in (("w1", 1500), ("w2", -1500)):
        moved = model.graph.initializers[name].const_value.numpy()
        along = factor if name == "w1" else factor[:, None]
        np.testing.assert_allclose(moved, before[name] * along**power, rtol=1e-5)
