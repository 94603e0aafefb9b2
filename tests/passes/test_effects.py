import numpy as np
import pytest

import bevel
from bevel.errors import UnsupportedModel
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.fitting.layers import layers
from bevel.passes.importance import effects as measuring
from bevel.passes.importance import obs
from bevel.passes.importance.effects import LEAST, SAMPLES, effects
from bevel.passes.prune_channels import PruneChannels
from tests.graphs import graph, snapshot

RNG = np.random.default_rng(11)
SUM = """
net (float[n, 6] x) => (float[n, 8] y) {
  a = MatMul (x, w1)
  b = MatMul (x, w2)
  c = Mul (a, gain)
  y = Add (c, b)
}
"""
BRANCHES = """
net (float[n, 6] x) => (float[n, 8] y) {
  a = MatMul (x, w1)
  r = Relu (a)
  b = MatMul (r, w2)
  c = MatMul (x, w3)
  s = Relu (c)
  d = MatMul (s, w4)
  e = Mul (d, gain)
  y = Add (b, e)
}
"""
FIXED = """
net (float[n, 6] x) => (float[m, 8] y) {
  a = MatMul (x, w1)
  sizes = Constant <value_ints = [64, 8]> ()
  b = Reshape (a, sizes)
  y = MatMul (b, w2)
}
"""


def summed(gain):
    return graph(
        SUM.replace("{\n", f"{{\n  gain = Constant <value_float = {gain}> ()\n", 1), {"w1": (6, 8), "w2": (6, 8)}
    )


def branches(gain):
    shapes = {"w1": (6, 16), "w2": (16, 8), "w3": (6, 16), "w4": (16, 8)}
    model = graph(BRANCHES.replace("{\n", f"{{\n  gain = Constant <value_float = {gain}> ()\n", 1), shapes)
    for one, other in (("w1", "w3"), ("w2", "w4")):  # both branches alike, but for the gain
        model.graph.initializers[other].const_value = model.graph.initializers[one].const_value
    return model


def context(rows=64, shift=0.0):
    feeds = [{"x": (RNG.standard_normal((rows, 6)) + shift).astype(np.float32)} for _ in range(2)]
    return Context(0, Calibration(lambda: feeds, "test"), Execution())


def measured(model, given):
    """The effects of the layers, by the names of their weights."""
    found = {layer.weight.name: effect for layer, effect in effects(model, layers(model), given).items()}
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize(("gain", "shift"), [(10.0, 0.0), (0.1, 0.0), (1.0, 3.0)])
def test_what_arrives_is_the_share_of_the_outputs_energy(gain, shift):
    model, given = summed(gain), context(shift=shift)
    w1, w2 = (model.graph.initializers[name].const_value.numpy() for name in ("w1", "w2"))
    x = next(iter(given.calibration))["x"][:SAMPLES]
    parts = [gain * x @ w1, x @ w2]  # nothing can add a constant: errors are relative to all of it
    whole = sum(parts)
    energies = [np.square(part).sum() / np.square(whole - whole.mean()).sum() for part in parts]
    assert measured(model, given) == pytest.approx(energies, rel=1e-3)


def test_what_arrives_nowhere_counts_next_to_nothing():
    first, second = measured(summed(0.0), context())
    assert first == pytest.approx(LEAST * second)


def test_feeds_are_cut_where_the_model_takes_any_number_of_samples():
    model, rows = summed(1.0), np.zeros((100, 6))
    cut = measuring._cut({"x": rows, "absent": None}, model)
    assert cut["x"].shape == (SAMPLES, 6) and cut["absent"] is None
    fixed = graph(SUM.replace("[n,", "[100,").replace("gain", "b"), {"w1": (6, 8), "w2": (6, 8)})
    assert measuring._cut({"x": rows}, fixed)["x"] is rows


def test_feeds_stay_whole_where_their_size_is_fixed_inside():
    model = graph(FIXED, {"w1": (6, 8), "w2": (8, 8)})
    first, second = measured(model, context(rows=64))
    assert first > 0 and second > 0
    with pytest.raises(UnsupportedModel):
        measured(model, context(rows=60))


def test_the_model_stays_as_it_is():
    model = summed(1.0)
    before = snapshot(model)
    measured(model, context())
    assert snapshot(model) == before


def hidden(gain):
    model = branches(gain)
    feeds = list(context(rows=200).calibration)
    bevel.optimize(model, "prune-channels{ratio=0.5 importance=obs refit=true}", calibration=feeds)
    return [model.graph.initializers[name].shape[1] for name in ("w1", "w3")]


def test_obs_takes_entries_where_errors_do_not_arrive(monkeypatch):
    kept, faint = hidden(0.05)
    assert kept >= 14 and faint <= 2
    monkeypatch.setattr(obs, "effects", lambda model, layers, context: dict.fromkeys(layers, 1.0))
    kept, faint = hidden(0.05)
    assert abs(kept - faint) <= 2


@pytest.mark.parametrize(("calibration", "named"), [("data", "slope"), ("text", "slope"), ("noise", "global")])
def test_obs_allocates_by_error_per_cost_where_inputs_are_likely(calibration, named):
    made = {"data": {}, "text": {"more": list, "likely": lambda: True}, "noise": {"more": list}}[calibration]
    context = Context(0, Calibration(list, calibration, **made), Execution())
    assert PruneChannels(importance="obs")._allocation(context) == named
    assert PruneChannels(importance="obs", allocation="uniform")._allocation(context) == "uniform"
