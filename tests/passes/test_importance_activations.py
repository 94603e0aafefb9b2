"""Importances from one run, against the same sums over the activations written out entry by entry."""

import numpy as np
import pytest

import bevel
from bevel.errors import CalibrationError
from bevel.ir.groups import analyse
from bevel.passes.importance.consumers import Reading, consumers
from bevel.passes.importance.readings import Channels, measure
from tests.graphs import graph
from tests.passes.nets import Net

# For each network and group: the activation and weight that meet, as channels first, and the channels of each entry.
MET = {
    ("mlp", "w1[1]"): ("r", 1, lambda net: net["w2"], lambda u: [u]),
    ("convs", "w1[0]"): ("r", 1, lambda net: by_channel(net["w2"], 1), lambda u: [u]),
    ("depthwise", "w1[0]"): ("r", 1, lambda net: by_channel(net["w3"], 1), lambda u: [u]),
    # w4 holds the five channels of a group; the first three filters read those of the first group
    ("depthwise", "w3[0.1]"): (
        "g",
        1,
        lambda net: np.concatenate([by_channel(net["w4"][:3], 1), by_channel(net["w4"][3:], 1)]),
        lambda u: [u, u + 5],
    ),
    ("grouped", "wq[1.0]"): ("o", 2, lambda net: net["wo"], lambda u: list(range(6 * u, 6 * u + 6))),
    ("grouped", "wq[1.1]"): (
        "o",
        2,
        lambda net: net["wo"],
        lambda u: [6 * head + 3 * u + place for head in range(2) for place in range(3)],
    ),
    ("grouped", "wv[1.1]"): ("o", 2, lambda net: net["wo"], lambda u: list(range(u, 12, 3))),
}
CASES = [pytest.param(*case, id="-".join(case)) for case in MET]


def by_channel(array, axis):
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def entries(net, case, number):
    """A number for each entry: the sum over its channels of a number of the activation and the weight there."""
    name, axis, weight, owned = MET[case]
    x, w = by_channel(net.inner(name), axis), weight(net)
    size = len(net.raw("magnitude", case[1]))
    return np.array([sum(number(x[channel], w[channel]) for channel in owned(unit)) for unit in range(size)])


@pytest.mark.parametrize(("network", "group"), CASES)
def test_activation_is_the_root_mean_square_of_what_is_read(network, group):
    net = Net(network)
    expected = np.sqrt(entries(net, (network, group), lambda x, w: np.square(x).mean()))
    np.testing.assert_allclose(net.raw("activation", group), expected, rtol=1e-4)


@pytest.mark.parametrize(("network", "group"), CASES)
def test_wanda_multiplies_sizes_of_weights_and_activations(network, group):
    net = Net(network)
    expected = entries(net, (network, group), lambda x, w: np.abs(w).sum() * np.sqrt(np.square(x).mean()))
    np.testing.assert_allclose(net.raw("wanda", group), expected, rtol=1e-4)


@pytest.mark.parametrize(("network", "group"), CASES)
def test_flap_multiplies_squares_of_weights_and_variances(network, group):
    net = Net(network)
    expected = entries(net, (network, group), lambda x, w: np.square(w).sum() * x.var())
    np.testing.assert_allclose(net.raw("flap", group), expected, rtol=1e-3)


def test_queries_and_keys_are_scored_by_what_is_compared():
    net = Net("grouped")
    norms = [np.sqrt(np.square(by_channel(net.inner(name), axis)).mean(1)) for name, axis in (("q", 4), ("k", 3))]
    product = norms[0] * norms[1]
    np.testing.assert_allclose(net.raw("wanda", "wq[1.2]"), product, rtol=1e-4)
    np.testing.assert_allclose(net.raw("flap", "wq[1.2]"), np.square(product), rtol=1e-4)
    np.testing.assert_allclose(net.raw("activation", "wq[1.2]"), np.hypot(*norms), rtol=1e-4)


@pytest.mark.parametrize("name", ["activation", "wanda", "flap"])
def test_every_group_of_an_attention_has_a_score_of_its_own(name):
    assert Net("grouped").score(name).notes == ()


def test_the_consumers_of_a_group_are_what_sums_over_it():
    analysis = analyse(Net("grouped").model)
    found = consumers(analysis, [analysis[name] for name in ("wq[1.0]", "wq[1.2]", "wv[1.1]")])
    weights = [each.weight[0].name if each.weight else None for each in found]
    assert [(each.node.outputs[0].name, [group.name for group in each.groups]) for each in found] == [
        ("z", ["wq[1.2]"]),
        ("y", ["wq[1.0]", "wv[1.1]"]),
    ]
    assert weights == [None, "wo"]
    assert [[reading.value.name for reading in each.readings] for each in found] == [["q", "k"], ["o"]]


def test_a_weight_inside_a_branch_counts_by_what_it_reads_outside():
    net = Net("mlp")
    net.model = graph(
        """
        branches (float[n, 6] x) => (float[n, 3] y) {
          h = MatMul (x, w1)
          r = Relu (h)
          total = ReduceSum <keepdims = 0> (x)
          zero = Sub (total, total)
          positive = Greater (total, zero)
          y = If (positive) <
            then_branch = then () => (float[n, 3] t) { t = MatMul (r, w2) },
            else_branch = else () => (float[n, 3] e) { e = MatMul (r, w3) }
          >
        }
        """,
        {"w1": (6, 8), "w2": (8, 3), "w3": (8, 3)},
    )
    size = np.sqrt(np.square(net.inner("r")).mean(0))
    expected = (np.abs(net["w2"]).sum(1) + np.abs(net["w3"]).sum(1)) * size
    np.testing.assert_allclose(net.raw("wanda", "w1[1]"), expected, rtol=1e-4)


def test_what_only_a_branch_holds_is_left_to_magnitude():
    net = Net("mlp")
    net.model = graph(
        """
        inside (float[n, 6] x) => (float[n, 3] y) {
          total = ReduceSum <keepdims = 0> (x)
          zero = Sub (total, total)
          positive = Greater (total, zero)
          y = If (positive) <
            then_branch = then () => (float[n, 3] t) { h = MatMul (x, w1)  t = MatMul (h, w2) },
            else_branch = else () => (float[n, 3] e) { e = MatMul (x, w3) }
          >
        }
        """,
        {"w1": (6, 8), "w2": (8, 3), "w3": (6, 3)},
    )
    scores = net.score("wanda", "w1[1]")
    np.testing.assert_array_equal(scores["w1[1]"], net.score("magnitude", "w1[1]")["w1[1]"])
    assert "wanda says nothing about w1[1]" in scores.notes[0]


def test_what_a_loop_hands_to_its_rounds_is_not_read():
    model = graph(
        """
        rounds (float[n, 6] x, int64 k, bool on) => (float[n, 3] y) {
          h = MatMul (x, w1)
          r = Loop <body = round (int64 i, bool before, float[n, 8] s) => (bool after, float[n, 8] t) {
            after = Identity (before)  u = MatMul (s, w2)  t = Relu (u)
          }> (k, on, h)
          y = MatMul (r, w3)
        }
        """,
        {"w1": (6, 8), "w2": (8, 8), "w3": (8, 3)},
    )
    (step,) = bevel.optimize(model, "prune-channels{ratio=0.5 importance=wanda}")
    assert step.verdict.kept


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_statistics_are_taken_at_every_opset(opset):
    net = Net("mlp")
    expected = net.raw("flap", "w1[1]")
    net.model.opset_imports[""] = opset
    net.model.graph.opset_imports[""] = opset
    np.testing.assert_allclose(net.raw("flap", "w1[1]"), expected)


def statistics(net, name):
    (value,) = (value for node in net.model.graph for value in node.outputs if value.name == name)
    return measure(net.model, [Reading(value, 1)], net.context)[Reading(value, 1)]


def test_statistics_run_over_feeds_of_different_sizes():
    net = Net("convs")
    net.feeds = [{"x": feed["x"][: 2 + place]} for place, feed in enumerate(net.feeds)]
    seen, values = statistics(net, "r"), by_channel(net.inner("r"), 1)
    assert seen.count == (2 + 3 + 4) * 16
    np.testing.assert_allclose(seen.mean, values.mean(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen.variance, values.var(1), rtol=1e-4)
    np.testing.assert_allclose(seen.energy, np.square(values).mean(1), rtol=1e-4)


def test_an_empty_feed_changes_nothing():
    net = Net("mlp")
    expected = net.raw("flap", "w1[1]")
    net.feeds = [{"x": np.zeros((0, 6), np.float32)}, *net.feeds]
    np.testing.assert_allclose(net.raw("flap", "w1[1]"), expected)


@pytest.mark.parametrize("feeds", [[], [{"x": np.zeros((0, 6), np.float32)}]])
def test_no_inputs_are_refused(feeds):
    net = Net("mlp")
    net.feeds = feeds
    with pytest.raises(CalibrationError, match="no input to take statistics of"):
        net.score("wanda", "w1[1]")


def test_a_large_mean_does_not_swallow_the_variance():
    net = Net("mlp", b1=np.full(8, 3000.0))
    seen, values = statistics(net, "h"), net.inner("h")
    np.testing.assert_allclose(seen.variance, values.var(0), rtol=1e-3)
    naive = np.square(values.astype(np.float32)).mean(0) - np.square(values.astype(np.float32).mean(0))
    assert np.abs(naive / values.var(0) - 1).max() > 1e-2


def test_joined_statistics_are_those_of_all_places():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((rows, 2)) * scale + scale for rows, scale in ((3, 1), (50, 4), (7, 0.1))]
    each = [Channels(len(part), part.mean(0), part.var(0)) for part in parts]
    together = each[0].joined(each[1]).joined(each[2])
    whole = np.concatenate(parts)
    assert together.count == len(whole)
    np.testing.assert_allclose(together.mean, whole.mean(0))
    np.testing.assert_allclose(together.variance, whole.var(0))


def test_made_up_inputs_leave_normalisations_distributed_as_training_did():
    net = Net("convs")
    by_data = statistics(net, "b")
    net.made_up = True
    mean, seen = net["mean"], statistics(net, "b")
    np.testing.assert_allclose(seen.mean, net["shift"], atol=1e-3)
    np.testing.assert_allclose(seen.variance, np.square(net["gain"]), rtol=1e-3)
    assert np.abs(by_data.mean - net["shift"]).max() > 0.1
    np.testing.assert_array_equal(net["mean"], mean)


def test_the_model_that_is_measured_stays_as_it_is():
    net = Net("convs")
    before = [value.name for value in net.model.graph.outputs], len(net.model.graph), len(net.model.graph.initializers)
    net.raw("wanda", "w1[0]")
    after = [value.name for value in net.model.graph.outputs], len(net.model.graph), len(net.model.graph.initializers)
    assert after == before


def planted(weight, change):
    """An MLP in which hidden channel 6 has been tampered with."""
    net = Net("mlp")
    array = net[weight]
    change(array)
    net.put(weight, array)
    return net


def test_a_channel_that_nobody_reads_ranks_last_by_wanda_and_flap():
    net = planted("w2", lambda w2: np.copyto(w2[6], 0))
    assert net.raw("wanda", "w1[1]")[6] == net.raw("flap", "w1[1]")[6] == 0
    assert np.sort(net.raw("wanda", "w1[1]"))[1] > 0
    assert net.raw("activation", "w1[1]")[6] > 0
    assert net.raw("magnitude", "w1[1]")[6] > 0


def test_a_channel_that_never_changes_ranks_last_by_flap_alone():
    net = planted("w1", lambda w1: np.copyto(w1[:, 6], 0))
    net.put("b1", np.full(8, 10.0))
    flap = net.raw("flap", "w1[1]")
    assert np.argmin(flap) == 6
    assert flap[6] < 1e-6 * np.sort(flap)[1]
    assert net.raw("wanda", "w1[1]")[6] > 0.01 * net.raw("wanda", "w1[1]").max()


@pytest.mark.parametrize("name", ["activation", "wanda", "flap"])
def test_a_channel_that_is_never_on_ranks_last(name):
    net = planted("b1", lambda b1: np.copyto(b1[6:7], -1000))
    assert np.argmin(net.raw(name, "w1[1]")) == 6
    assert net.raw(name, "w1[1]")[6] == 0
    assert np.argmin(net.raw("magnitude", "w1[1]")) != 6


def test_a_head_that_nobody_reads_ranks_last():
    net = Net("grouped")
    wo = net["wo"]
    wo[:6] = 0
    net.put("wo", wo)
    assert net.raw("wanda", "wq[1.0]")[0] == net.raw("flap", "wq[1.0]")[0] == 0 < net.raw("wanda", "wq[1.0]")[1]
