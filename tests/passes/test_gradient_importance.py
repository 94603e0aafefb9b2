"""Importances that need gradients, against what they stand for."""

import subprocess
import sys
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel import registry
from bevel.errors import CalibrationError, UnsupportedModel
from bevel.ir.edit import mask, permute
from bevel.ir.groups import analyse
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.importance import Importance
from bevel.passes.importance.slopes import batches
from bevel.passes.importance.taylor import DRAWS
from tests import zoo
from tests.graphs import graph
from tests.passes.nets import TEXTS, Net

NAMES = ("taylor", "snip", "grasp", "synflow")
HIDDEN = {"mlp": "w1[1]", "convs": "w1[0]", "depthwise": "w1[0]", "grouped": "wq[1.0]"}
ORDER = np.array([3, 1, 7, 0, 2, 6, 5, 4])
# In each network, the weights that read the hidden channels, and the axis on which they do.
READERS = {"mlp": ("w2", 0), "convs": ("w2", 1), "depthwise": ("w3", 1)}
IDS = """
lookup (int64[n, s] ids) => (float[n, s, 7] y) {
  e = Gather (table, ids)
  h = MatMul (e, w)
  r = Relu (h)
  y = MatMul (r, back)
}
"""
QUANTIZED = """
quantized (float[n, 6] x) => (float[n, 3] y) <float scale = {0.05}, uint8 zero = {128}> {
  h = MatMul (x, w1)
  q = QuantizeLinear (h, scale, zero)
  d = DequantizeLinear (q, scale, zero)
  y = MatMul (d, w2)
}
"""


def times(net, name, factor, axis, entry):
    """Multiply what a weight holds for one entry of a group."""
    array = net[name].copy()
    array[(slice(None),) * axis + (entry,)] *= factor
    net.put(name, array)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_installed_and_say_what_they_need(name):
    found = registry.importances()[name]
    assert isinstance(found, Importance)
    assert "Needs PyTorch" in found.scores.__doc__


@pytest.mark.parametrize("text", READERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_entry_of_zeros_scores_zero(name, text):
    net, (reader, axis) = Net(text), READERS[text]
    for weight, place in (
        (reader, axis),
        ("w1", 1 if text == "mlp" else 0),
        *([("w2", 0)] if text == "depthwise" else []),
    ):
        times(net, weight, 0, place, 5)
    scores = net.raw(name, HIDDEN[text])
    assert scores[5] == 0
    assert np.delete(scores, 5).max() > 0


@pytest.mark.parametrize("text", READERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_entry_that_decides_the_answer_scores_highest(name, text):
    net, (reader, axis) = Net(text), READERS[text]
    net.put(reader, net[reader] * 0.1)
    times(net, reader, 30, axis, 2)
    if text == "mlp":  # at work on every input
        net.put("b1", np.where(np.arange(8) == 2, 3, net["b1"]))
    assert net.raw(name, HIDDEN[text]).argmax() == 2


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_scores_move_with_the_entries(name, text):
    net, group = Net(text), HIDDEN[text]
    before = net.raw(name, group)
    order = ORDER if len(before) == len(ORDER) else np.arange(len(before))[::-1]
    permute(net.model, {group: order})
    np.testing.assert_allclose(net.raw(name, group), before[order], rtol=1e-3, atol=1e-5 * before.max())


def gradients(net, kind):
    return Execution().gradients(net.model, batches(net.model, net.context), kind, 0)


def test_snip_adds_the_sizes_of_weights_times_gradients():
    net = Net("mlp")
    (found,) = gradients(net, "predicted")
    expected = np.abs(net["w1"] * found["w1"]).sum(0) + np.abs(net["w2"] * found["w2"]).sum(1)
    np.testing.assert_allclose(net.raw("snip", "w1[1]"), expected, rtol=1e-5)


def test_grasp_adds_what_each_tensor_does_to_the_gradient():
    net = Net("mlp")
    (found,) = gradients(net, "curvature")
    expected = np.abs((net["w1"] * found["w1"]).sum(0)) + np.abs((net["w2"] * found["w2"]).sum(1))
    np.testing.assert_allclose(net.raw("grasp", "w1[1]"), expected, rtol=1e-5)


def test_synflow_is_the_same_in_every_tensor_that_the_flow_passes():
    net = Net("depthwise")
    (found,) = gradients(net, "flow")
    into, depth, out = (np.abs(net[name]) * found[name] for name in ("w1", "w2", "w3"))
    flows = into.sum((1, 2, 3)), depth.sum((1, 2, 3)), out.sum((0, 2, 3))
    np.testing.assert_allclose(flows[1], flows[2], rtol=1e-6)
    np.testing.assert_allclose(flows[0], flows[1], rtol=1e-6)
    np.testing.assert_allclose(net.raw("synflow", "w1[0]"), sum(flows), rtol=1e-6)


def test_taylor_adds_mean_squares_of_sums_over_each_tensor():
    net = Net("mlp")
    feeds = batches(net.model, net.context, 2)
    found = list(Execution().gradients(net.model, islice(cycle(feeds), DRAWS), "fisher", 0))
    assert len(feeds) < len(found) == DRAWS
    squares = [(net["w1"] * g["w1"]).sum(0) ** 2 + (net["w2"] * g["w2"]).sum(1) ** 2 for g in found]
    np.testing.assert_allclose(net.raw("taylor", "w1[1]"), np.mean(squares, 0) / 2, rtol=1e-5)


def damage(net, group):
    """The Kullback-Leibler divergence that masking each entry causes, on the calibration inputs."""
    size = analyse(net.model)[group].size
    exact = [divergence(net, group, np.delete(np.arange(size), entry)) for entry in range(size)]
    return np.array(exact)


def divergence(net, group, keep):
    masked = net.model.clone()
    mask(masked, {group: keep})
    before, after = (log_softmax(answers(model, net.feeds)) for model in (net.model, masked))
    return (np.exp(before) * (before - after)).sum(-1).mean()


def answers(model, feeds):
    with Execution().open(model) as runs:
        return np.concatenate([runs.run(feed)["y"] for feed in feeds]).astype(np.float64)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_taylor_is_what_the_answers_lose_to_second_order():
    net = Net("mlp")
    net.put("b1", np.full(8, 6.0))  # all units at work: the network is linear, where second order is all there is
    net.put("w2", net["w2"] * 0.01)
    net.feeds = [{"x": np.random.default_rng(2).standard_normal((128, 6)).astype(np.float32)}]
    draws = list(Execution().gradients(net.model, net.feeds * 500, "fisher", 0))
    lost = np.mean([(net["w2"] * each["w2"]).sum(1) ** 2 for each in draws], 0) / 2
    # A mean of squares of nearly normal numbers, and what the third order adds.
    np.testing.assert_allclose(lost, damage(net, "w1[1]"), rtol=4 * np.sqrt(2 / len(draws)) + 0.02)


def test_taylor_orders_units_as_their_damage_does():
    net = Net("mlp")
    net.put("w2", net["w2"] * np.geomspace(0.01, 1, 8)[:, None])
    net.feeds = [{"x": np.random.default_rng(2).standard_normal((128, 6)).astype(np.float32)}]
    ranks = [np.argsort(np.argsort(each)) for each in (net.raw("taylor", "w1[1]"), damage(net, "w1[1]"))]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    assert abs(np.corrcoef(np.argsort(np.argsort(net.raw("random", "w1[1]"))), ranks[1])[0, 1]) < 0.9


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_scores(name):
    net = Net("mlp")
    analysis = analyse(net.model)
    scores = registry.importances()[name]
    first, again, other = (
        scores(analysis, [analysis["w1[1]"]], replace(net.context, seed=seed))["w1[1]"] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (name != "taylor")


def test_samples_are_cut_where_the_model_takes_any_number():
    net = Net("mlp")
    assert [len(feed["x"]) for feed in batches(net.model, net.context, 3)] == [3, 1] * 3
    net.feeds = [{"x": np.zeros((1000, 6), np.float32)}]
    assert [len(feed["x"]) for feed in batches(net.model, net.context)] == [32] * 4
    fixed = graph(TEXTS["mlp"][0].replace("[n, ", "[4, "), TEXTS["mlp"][1])
    net.feeds = [{"x": np.zeros((4, 6), np.float32)}]
    assert [len(feed["x"]) for feed in batches(fixed, net.context, 3)] == [4]


def test_without_inputs_there_are_no_gradients():
    net = Net("mlp")
    with pytest.raises(CalibrationError, match="no input"):
        batches(net.model, replace(net.context, calibration=Calibration(list, "nothing")))


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_inputs_too(name):
    model = graph(IDS, {"table": (7, 4), "w": (4, 6), "back": (6, 7)})
    dead = model.graph.initializers["w"].const_value.numpy().copy()
    dead[:, 4] = 0
    model.graph.initializers["w"].const_value = ir.tensor(dead, name="w")
    report = bevel.optimize(model, f"prune-channels{{ratio=0.2 importance={name} only=w[1]}}")
    assert report.steps[0].verdict.kept
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), np.delete(dead, 4, 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_model_is_refused_with_the_node_and_left_as_it_was(name):
    model = graph(QUANTIZED, {"w1": (6, 8), "w2": (8, 3)})
    with pytest.raises(UnsupportedModel, match=r"'q' \(QuantizeLinear\).*\n.*magnitude"):
        bevel.optimize(model, f"prune-channels{{ratio=0.5 importance={name}}}")
    assert model.graph.initializers["w1"].shape == (6, 8)
    bevel.optimize(model, "prune-channels{ratio=0.5 importance=magnitude}")
    assert model.graph.initializers["w1"].shape == (6, 4)


def test_without_torch_they_are_refused_and_others_work(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('hidden', name='torch')")
    code = (
        "from tests.graphs import mlp; import bevel\n"
        "bevel.optimize(mlp(), 'prune-channels{ratio=0.5}')\n"
        "try: bevel.optimize(mlp(), 'prune-channels{ratio=0.5 importance=snip}')\n"
        "except bevel.errors.UsageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": f"{tmp_path}:."}, check=False
    )
    assert "torch is not installed" in done.stdout, done.stderr
    assert "bevel[torch]" in done.stdout


# Every importance and every network at least once; second derivatives of a BERT take 20 seconds.
PAIRS = [("resnet", "taylor"), ("bert", "snip"), ("llama", "synflow"), ("gru", "grasp"), ("bert", "synflow")]


@pytest.mark.parametrize(("network", "name"), PAIRS)
def test_real_networks_are_pruned_and_verified(network, name):
    model = bevel.load(zoo.model(network, "dynamo"))
    report = bevel.optimize(model, f"prune-channels{{ratio=0.3 importance={name}}}")
    assert report.after.parameters < report.before.parameters
    assert report.steps[0].verdict.kept
    assert not any("scored by magnitude" in note for note in report.steps[0].notes)
