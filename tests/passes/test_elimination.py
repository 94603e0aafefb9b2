import numpy as np
import pytest

from bevel.passes.fitting import elimination
from bevel.passes.fitting.elimination import Reader, eliminate
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.importance import importance, obs
from bevel.passes.prune_channels import PruneChannels
from tests.passes.nets import Net

SINGLES = np.arange(12)[:, None]
PAIRS = np.arange(12).reshape(6, 2)[::-1]


@pytest.fixture(scope="module")
def sample():
    """The second moments of what two layers read, and their weights."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((500, 12)) @ rng.standard_normal((12, 12)) for _ in range(2)]
    return [(SecondOrder(x.T @ x / len(x)), rng.standard_normal((5, 12))) for x in inputs]


def readers(sample, units, scale=1.0):
    return [Reader(w, order.inverse, units, scale) for order, w in sample]


def error(sample, dropped):
    return sum(order.error(w, dropped) for order, w in sample)


@pytest.mark.parametrize("units", [SINGLES, PAIRS], ids=["channels", "heads"])
def test_figures_add_up_to_the_joint_error_of_what_went(sample, units):
    figures = eliminate(readers(sample, units))
    order = np.argsort(figures)
    sums = np.cumsum(figures[order])
    joint = [error(sample, units[order[:count]].ravel()) for count in range(1, len(units) + 1)]
    assert np.all(sums >= np.array(joint) * (1 - 1e-9))
    assert sums[:4] == pytest.approx(joint[:4], rel=1e-6)  # here none mattered less after another went
    alone = np.cumsum([error(sample, units[entry]) for entry in order])
    assert alone[3] < 0.9 * joint[3]  # what entries cost alone does not add up to it


def test_each_entry_that_goes_is_the_one_that_costs_least_then(sample):
    order = np.argsort(eliminate(readers(sample, SINGLES)))
    for count in (1, 4, 8):
        gone, rest = order[:count], order[count:]
        assert rest[0] == min(rest, key=lambda entry: error(sample, np.append(gone, entry)))


def test_of_two_that_are_alike_one_stays():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6))
    x[:, 3:] = x[:, :3]
    order, w = SecondOrder(x.T @ x / len(x)), np.ones((4, 6))
    kept = np.argsort(eliminate([Reader(w, order.inverse, SINGLES[:6], 1.0)]))[3:]
    assert sorted(kept % 3) == [0, 1, 2]
    w[:, [0, 3]] *= 3
    alone = np.argsort(order.scores(w, SINGLES[:6]))[3:]
    assert {0, 3} <= set(alone)  # scored alone, the two largest stay though one says all


def test_rounds_come_close_to_one_at_a_time(sample, monkeypatch):
    exact = eliminate(readers(sample, SINGLES))
    monkeypatch.setattr(elimination, "ROUNDS", 6)
    rounds = eliminate(readers(sample, SINGLES))
    assert rounds.sum() == pytest.approx(exact.sum(), rel=0.2)
    assert len(set(np.argsort(rounds)[6:]) & set(np.argsort(exact)[6:])) >= 5


def test_only_what_the_group_owns_of_a_layer_counts(sample):
    (order, w), _ = sample
    part = eliminate([Reader(w, order.inverse, SINGLES[4:8], 2.0)])
    first = int(np.argmin(part))
    assert part[first] == pytest.approx(order.error(w, SINGLES[4 + first]) / 2)
    assert np.cumsum(np.sort(part))[-1] >= order.error(w, SINGLES[4:8].ravel()) / 2 * (1 - 1e-9)


def test_groups_that_hold_too_much_are_scored_entry_by_entry(monkeypatch):
    net = Net("mlp")
    together = net.score("obs", "w1[1]")["w1[1]"]
    monkeypatch.setattr(obs, "MOST_KEPT", 0)
    alone = net.score("obs", "w1[1]")["w1[1]"]
    assert together.min() == pytest.approx(alone.min())
    assert together.max() > 1.01 * alone.max()


def test_what_another_importance_scores_is_of_the_same_level():
    @importance(normalize="none")
    def one_only(analysis, groups, context):
        return {groups[0].name: np.full(groups[0].size, 1e-6)}

    first, *others = Net("grouped").score(one_only).values()
    assert first.mean() == pytest.approx(1e-6)
    assert [other.mean() for other in others] == [pytest.approx(1e-6)] * len(others)
    assert others


def widths(made_up=False, **options):
    """What obs leaves of two layers, of which the first one's output hardly varies but in two of eight channels."""
    net = Net("depthwise")
    net.made_up = made_up
    net.put("w1", net["w1"] * np.where(np.arange(8) < 2, 1.0, 1e-3)[:, None, None, None])
    PruneChannels(importance="obs", ratio=0.5, **options).run(net.model, net.context)
    return [len(net[name]) for name in ("w1", "w3")]


def test_groups_lose_where_least_error_comes_of_a_cost_unless_something_else_is_asked_for():
    assert widths() == widths(allocation="slope") == [3, 6]
    assert widths(allocation="global") == [3, 8]
    assert widths(allocation="uniform") == [4, 6]
    assert widths(made_up=True) == widths(made_up=True, allocation="global")
    assert widths(made_up=True) != widths(made_up=True, allocation="slope")
