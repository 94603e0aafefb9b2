"""The lift from parts to scores, and what holds for every importance."""

import numpy as np
import pytest

import bevel
from bevel import registry
from bevel.errors import UsageError
from bevel.ir.edit import permute
from bevel.ir.groups import analyse
from bevel.passes.importance import Importance, importance, lift
from tests import zoo
from tests.graphs import mlp
from tests.passes.nets import TEXTS, Net

FROM_WEIGHTS = ("magnitude", "magnitude-l1", "batchnorm", "lamp", "dimap", "fpgm", "iscs")
FROM_ACTIVATIONS = ("activation", "wanda", "flap")
PARTS = np.array([[3.0, 1.0, 0.0], [4.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", [7, 2, 2]),
        ("mean", [3.5, 1, 1]),
        ("max", [4, 1, 2]),
        ("norm", [5, 2**0.5, 2]),
        ("prod", [12**0.5, 1, (2 * lift.SMALLEST) ** 0.5]),
    ],
)
def test_parts_are_joined(how, expected):
    np.testing.assert_allclose(lift.aggregated(PARTS, how), expected)


def test_the_product_of_many_parts_orders_without_overflow():
    parts = np.full((5000, 2), 1e3)
    parts[0, 1] = 1.1e3
    joined = lift.aggregated(parts, "prod")
    assert np.isfinite(joined).all()
    assert joined[1] > joined[0]


def test_a_group_without_parts_scores_zero():
    np.testing.assert_array_equal(lift.aggregated(np.zeros((0, 2)), "max"), [0, 0])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [1, 2, 6]),
        ("mean", [1 / 3, 2 / 3, 2]),
        ("sum", [1 / 9, 2 / 9, 6 / 9]),
        ("max", [1 / 6, 1 / 3, 1]),
        ("std", np.array([-2, -1, 3]) / (14 / 3) ** 0.5),
    ],
)
def test_scores_are_normalised(how, expected):
    np.testing.assert_allclose(lift.normalized(np.array([1.0, 2.0, 6.0]), how), expected)


@pytest.mark.parametrize("how", ["none", "mean", "sum", "max", "std"])
def test_a_group_of_zeros_stays_finite(how):
    np.testing.assert_array_equal(lift.normalized(np.zeros(3), how), np.zeros(3))


def test_scores_below_zero_keep_their_order():
    np.testing.assert_allclose(lift.normalized(np.array([-3.0, 1.0]), "mean"), [-1.5, 0.5])


def test_a_plain_function_is_an_importance_whose_parts_are_added():
    scores = Net("mlp").score(lambda analysis, groups, context: {"w1[1]": np.ones((2, 8))}, "w1[1]", normalize="none")
    np.testing.assert_array_equal(scores["w1[1]"], np.full(8, 2))


def test_an_importance_says_how_it_is_joined_and_the_caller_may_say_otherwise():
    @importance(aggregate="max", normalize="none")
    def given(analysis, groups, context):
        return {"w1[1]": np.stack([np.arange(8), np.ones(8)])}

    net = Net("mlp")
    np.testing.assert_array_equal(net.score(given, "w1[1]")["w1[1]"], [1, 1, 2, 3, 4, 5, 6, 7])
    added = net.score(given, "w1[1]", aggregate="sum", normalize="max")["w1[1]"]
    np.testing.assert_array_equal(added, np.arange(1, 9) / 8)


def test_groups_that_an_importance_leaves_out_are_scored_by_magnitude_and_the_notes_say_so():
    net = Net("mlp")
    scores = net.score(lambda analysis, groups, context: {}, "w1[1]")
    np.testing.assert_array_equal(scores["w1[1]"], net.score("magnitude", "w1[1]")["w1[1]"])
    assert "w1[1]: scored by magnitude" in scores.notes[0]
    assert net.score("magnitude", "w1[1]").notes == ()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (np.ones(7), r"shape \[7\] for 8 entries"),
        (np.ones((8, 2)), r"shape \[8, 2\] for 8 entries"),
        (np.ones((1, 1, 8)), r"shape \[1, 1, 8\]"),
        (np.full(8, np.nan), "no finite numbers"),
        (np.full((2, 8), np.inf), "no finite numbers"),
    ],
)
def test_an_importance_that_answers_nonsense_is_refused(answer, problem):
    with pytest.raises(UsageError, match=problem):
        Net("mlp").score(lambda analysis, groups, context: {"w1[1]": answer}, "w1[1]")


@pytest.mark.parametrize("name", [*FROM_WEIGHTS, "wanda", "obs"])
def test_groups_of_weights_that_are_not_finite_have_no_score_and_the_notes_say_so(name):
    net = Net("mlp")
    net.put("w1", np.where(np.eye(*net["w1"].shape), -np.inf, net["w1"]))
    scores = net.score(name, "w1[1]")
    assert not scores
    assert scores.notes == ("left alone: w1[1]: weights that are not finite have no order",)


def test_a_name_that_is_not_installed_is_refused():
    with pytest.raises(UsageError, match="did you mean 'magnitude'"):
        Net("mlp").score("magnitud", "w1[1]")


@pytest.mark.parametrize("name", [*FROM_WEIGHTS, *FROM_ACTIVATIONS, "iscs-slices", "random"])
def test_importances_are_installed_under_their_names(name):
    found = registry.importances()[name]
    assert isinstance(found, Importance)
    assert found.scores.__doc__
    assert found.scores.__name__ == name.replace("-", "_")


def moved(net, name, order):
    """How the scores of a group differ between a network and the same one with the group in another order."""
    groups = {each.name for each in analyse(net.model).groups if each.allows("permute")}
    (group,) = groups & {"w1[1]", "w1[0]", "wq[1.0]"}
    before = net.score(name, group)[group]
    order = np.resize(order, len(before)) if len(before) == len(order) else np.arange(len(before))[::-1]
    permute(net.model, {group: order})
    return np.abs(net.score(name, group)[group] - before[order]).max() / np.abs(before).max()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", [*FROM_WEIGHTS, *FROM_ACTIVATIONS, "iscs-slices"])
def test_scores_move_with_the_entries(name, text):
    assert moved(Net(text), name, np.array([3, 1, 7, 0, 2, 6, 5, 4])) < 1e-5


def test_what_is_random_does_not_move():
    assert moved(Net("mlp"), "random", np.array([3, 1, 7, 0, 2, 6, 5, 4])) > 0.1


@pytest.mark.parametrize("name", [*FROM_WEIGHTS, *FROM_ACTIVATIONS, "iscs-slices"])
@pytest.mark.parametrize("network", ["resnet", "llama"])
def test_every_importance_prunes_a_network_and_is_verified(network, name):
    model = bevel.load(zoo.model(network, "dynamo"))
    report = bevel.optimize(model, f"prune-channels{{ratio=0.25 importance={name}}}")
    assert report.after.parameters < report.before.parameters
    assert report.steps[0].verdict.kept
    told = any("scored by magnitude" in note for note in report.steps[0].notes)
    assert told == (name == "batchnorm" and network == "llama")


def test_reordering_takes_an_importance_and_an_aggregate():
    model = mlp()
    bevel.optimize(model, "reorder-channels{importance=magnitude-l1 aggregate=max}")
    parts = np.stack([np.abs(weight(model, "w1")).sum(0), np.abs(weight(model, "w2")).sum(1)])
    assert (np.diff(parts.max(0)) <= 0).all()
    assert (np.diff(parts.sum(0)) > 0).any()


def weight(model, name):
    return model.graph.initializers[name].const_value.numpy()
