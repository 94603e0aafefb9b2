"""Allocations as functions of arrays: optimal where they claim to be, monotone, from below."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bevel.errors import BudgetMissed, UnsupportedModel
from bevel.ir.groups import analyse
from bevel.passes.allocation import ALLOCATIONS
from bevel.passes.allocation.angular import home, kept
from bevel.passes.allocation.fit import CLOSE, filled, fit
from bevel.passes.allocation.keeps import best
from bevel.passes.allocation.ladder import ladder, natural_step, span, step_of
from bevel.passes.allocation.measured import search
from bevel.passes.allocation.menu import Menu, damage, menus
from bevel.passes.allocation.problem import Problem
from bevel.passes.allocation.programming import knapsack
from bevel.passes.allocation.slope import descent
from bevel.passes.allocation.threshold import above, by_kind
from bevel.passes.base import Context
from tests.graphs import graph

THREE = """
three (float[n, 6] x) => (float[n, 3] y) {
  a = MatMul (x, w1)  b = Relu (a)  c = MatMul (b, w2)  d = Relu (c)  e = MatMul (d, w3)  f = Relu (e)
  y = MatMul (f, w4)
}
"""
THREE_WEIGHTS = {"w1": (6, 12), "w2": (12, 30), "w3": (30, 8), "w4": (8, 3)}


def problem(seed=0, **given):
    analysis = analyse(graph(THREE, THREE_WEIGHTS))
    rng = np.random.default_rng(seed)
    groups = [group for group in analysis.groups if group.allows("select")]
    return Problem(
        analysis=analysis,
        groups=groups,
        scores={group.name: rng.gamma(1.0, size=group.size) for group in groups},
        ladders={group.name: np.arange(1, group.size + 1) for group in groups},
        sizes={group.name: group.size for group in groups},
        context=Context(0, None, None),
        **given,
    )


def lost(scores, widths):
    """The score of all that goes."""
    return sum(values.sum() - np.sort(values)[::-1][: widths[name]].sum() for name, values in scores.items())


# Integer programming


def random_menus(rng, groups, choices):
    def one():
        saved = np.concatenate([[0.0], np.cumsum(rng.random(choices - 1))])
        return Menu(np.arange(choices, 0, -1), saved, np.concatenate([[0.0], np.cumsum(rng.random(choices - 1))]))

    return [one() for _ in range(groups)]


def brute_force(table, required):
    choices = product(*(range(len(menu.widths)) for menu in table))
    within = [choice for choice in choices if total(table, choice, "saved") >= required - 1e-9]
    return min(total(table, choice, "damage") for choice in within)


def total(table, choice, field):
    return sum(getattr(menu, field)[place] for menu, place in zip(table, choice, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_the_program_finds_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    table = random_menus(rng, groups=4, choices=5)
    required = rng.uniform(0.1, 0.95) * sum(menu.saved[-1] for menu in table)
    least = brute_force(table, required)
    for gap in (0.0, 0.01):
        choice = knapsack(table, required, gap)
        assert total(table, choice, "saved") >= required - 1e-6
        assert least * (1 - 1e-6) <= total(table, choice, "damage") <= least * (1 + gap + 1e-6)


def test_a_greedy_choice_is_not_the_best_of_all():
    """The control: what the program gains over the steepest first is seen by the same comparison."""
    table = [
        Menu(np.array([2, 1]), np.array([0.0, 1.0]), np.array([0.0, 1.0])),
        Menu(np.array([2, 1]), np.array([0.0, 1.5]), np.array([0.0, 1.6])),
    ]
    assert total(table, knapsack(table, 1.2, 0.0), "damage") == brute_force(table, 1.2) == 1.6
    assert total(table, [1, 1], "damage") > 1.6  # the better ratio first, then what is still missing


def test_nothing_required_changes_nothing():
    assert knapsack(random_menus(np.random.default_rng(0), 3, 4), 0.0) == [0, 0, 0]
    assert knapsack([], 0.5) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_the_program_loses_no_more_than_others_that_save_as_much(seed, strength):
    given = problem(seed)
    table = menus(given)

    def saved(widths):
        return sum(menu.saved[list(menu.widths).index(widths[name])] for name, menu in table.menus.items())

    ours = ALLOCATIONS["milp"](given)(strength)
    for other in ("uniform", "global", "slope"):
        share = strength
        while saved(widths := ALLOCATIONS[other](given)(share)) < table.required(strength) - 1e-9:
            share = min(share + 0.01, 1.0)
        assert lost(given.scores, ours) <= lost(given.scores, widths) * 1.01


# Slopes


def test_the_hull_passes_by_what_costs_more_than_it_brings():
    menu = Menu(np.array([4, 3, 2, 1]), np.array([0, 1, 2, 3.0]), np.array([0, 5, 6, 9.0]))
    assert [(step.width, step.slope) for step in descent("a", menu)] == [(1, 3.0)]


@pytest.mark.parametrize("seed", range(5))
def test_every_group_stands_at_one_slope(seed):
    """No step taken damages more, for what it saves, than a step not taken."""
    given = problem(seed)
    widths = ALLOCATIONS["slope"](given)(0.5)
    steps = [step for name, menu in menus(given).menus.items() for step in descent(name, menu)]
    taken = [step.slope for step in steps if step.width >= widths[step.group]]
    left = [step.slope for step in steps if step.width < widths[step.group]]
    assert max(taken) <= min(left)


def test_what_saves_nothing_stays():
    menu = Menu(np.array([3, 2, 1]), np.zeros(3), np.array([0.0, 1.0, 2.0]))
    assert descent("a", menu) == []


def test_where_products_are_not_counted_parameters_are_saved():
    given = problem()
    for value in (value for node in given.analysis.model.graph for value in node.outputs):
        value.shape = None
    blind = replace(given)  # nothing that was forecast with shapes
    assert blind.figure({}) == 0
    assert menus(blind).whole > 0
    assert ALLOCATIONS["slope"](blind)(0.5) != dict(given.sizes)


def test_damage_is_the_score_of_what_goes():
    scores = np.array([5.0, 1.0, 3.0])
    assert damage(scores, np.array([3, 2, 1])).tolist() == [0.0, 1.0, 4.0]
    kept_two = best({"a": scores}, {"a": 2})["a"]
    assert scores.sum() - scores[kept_two].sum() == 1.0


# All of them


@pytest.mark.parametrize("name", [name for name in ALLOCATIONS if name != "angular"])
@pytest.mark.parametrize("metric", ["macs", "parameters"])
def test_more_strength_never_leaves_more_cost_and_the_ends_are_all_and_least(name, metric):
    given = problem(metric=metric)
    allocate = ALLOCATIONS[name](given)
    figures = [given.figure(allocate(strength)) for strength in np.linspace(0, 1, 21)]
    assert allocate(0.0) == dict(given.sizes)
    assert name == "global" or set(allocate(1.0).values()) == {1}
    if name in ("uniform", "global", "isomorphic"):
        assert figures == sorted(figures, reverse=True)
    assert figures[0] > figures[10] > figures[-1]


def test_many_small_entries_are_not_emptied_before_few_large_ones():
    scores = {"hidden": np.linspace(0.001, 0.002, 100), "heads": np.array([1.0, 2, 3, 4])}
    assert above(scores, 0.75) == {"hidden": 12, "heads": 2}
    assert above(scores, 0.25) == {"hidden": 50, "heads": 4}


def test_one_threshold_for_all_or_for_each_kind():
    scores = {"a": np.array([1.0, 2, 3, 4]), "b": np.array([10.0, 20, 30, 40])}
    assert above(scores, 0.5) == {"a": 1, "b": 4}  # none is emptied: half of an even share stays
    given = problem()
    kinds = by_kind(given.groups)
    assert [len(groups) for groups in kinds.values()] == [3]


def test_kinds_tell_convolutions_from_matrices():
    model = graph(
        """
        m (float[n, 3, 8, 8] x) => (float[n, 5] y) {
          a = Conv (x, k1)  b = Conv (a, k2)  c = Conv (b, k3)
          p = GlobalAveragePool (c)  f = Flatten (p)  h = MatMul (f, w1)  y = MatMul (h, w2)
        }
        """,
        {"k1": (8, 3, 3, 3), "k2": (8, 8, 3, 3), "k3": (8, 8, 3, 3), "w1": (8, 8), "w2": (8, 5)},
    )
    groups = [group for group in analyse(model).groups if group.allows("select")]
    assert sorted(len(found) for found in by_kind(groups).values()) == [1, 1, 2]


def test_steps_take_a_share_of_what_is_left():
    assert problem(done=0.5).left(0.75) == 0.5
    assert problem().left(0.75) == 0.75
    assert problem(done=0.5).left(0.4) == 0.0


# Angles


def test_layers_that_turn_far_keep_more_and_the_mean_holds():
    distances = np.array([0.05, 0.1, 0.1, 0.3])
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        parts = kept(distances, share)
        assert parts.mean() == pytest.approx(1 - share)
        assert parts.max() <= 1
        assert np.all(np.diff(parts[np.argsort(distances)]) >= 0)
    assert kept(distances, 0.0).tolist() == [1, 1, 1, 1]
    assert kept(distances, 1.0).tolist() == [0, 0, 0, 0]


def test_without_blocks_there_are_no_angles():
    with pytest.raises(UnsupportedModel, match="no residual blocks"):
        ALLOCATIONS["angular"](problem())


def test_a_group_is_at_home_where_all_its_tensors_are():
    given = problem()
    assert [home(group, []) for group in given.groups] == [None, None, None]


# Widths


def test_ladders():
    assert ladder(64, 16, 1).tolist() == [16, 32, 48, 64]
    assert ladder(20, 16, 1).tolist() == [16, 20]
    assert ladder(16, 16, 1).tolist() == [16]
    assert ladder(5, 1, 3).tolist() == [3, 4, 5]
    assert ladder(2, 1, 9).tolist() == [2]


def test_a_convolution_goes_in_blocks_and_a_matrix_by_columns():
    model = graph(
        """
        m (float[n, 3, 8, 8] x) => (float[n, 5] y) {
          a = Conv (x, k)  f = Flatten (a)  h = MatMul (f, w1)  y = MatMul (h, w2)
        }
        """,
        {"k": (48, 3, 3, 3), "w1": (48 * 36, 40), "w2": (40, 5)},
    )
    analysis = analyse(model)
    assert natural_step(analysis, analysis["k[0]"], 16) == 16
    assert natural_step(analysis, analysis["w1[1]"], 16) == 1


def test_a_head_is_as_many_channels_as_it_is_wide():
    model = graph(
        """
        m (float[2, 5, 6] x) => (float[2, 5, 6] y)
        <int64[4] split = {2, 5, 4, 3}, int64[3] join = {2, 5, 12}> {
          a = MatMul (x, w)  b = Reshape (a, split)  c = Relu (b)  d = Reshape (c, join)  y = MatMul (d, v)
        }
        """,
        {"w": (6, 12), "v": (12, 6)},
    )
    analysis = analyse(model)
    heads = next(group for group in analysis.groups if group.size == 4)
    assert span(analysis, heads) == 3
    assert [step_of(analysis, heads, channels) for channels in (1, 3, 6, 16)] == [1, 1, 2, 16]


# Fitting a target


@pytest.mark.parametrize("name", ["uniform", "global", "isomorphic", "slope"])
@pytest.mark.parametrize("limit", [100, 250, 400, 600])
def test_nothing_more_fits_within_a_target(name, limit):
    given = problem()
    widths = fit(ALLOCATIONS[name](given), given.figure, limit, "")
    assert 0.9 * limit <= given.figure(widths) <= limit
    wider = [widths | {name: width + 1} for name, width in widths.items() if width < given.sizes[name]]
    assert given.figure(widths) > CLOSE * limit or all(given.figure(each) > limit for each in wider)


def test_a_fit_that_is_out_of_reach_is_refused():
    given = problem()
    least = given.figure(dict.fromkeys(given.sizes, 1))
    assert fit(ALLOCATIONS["uniform"](given), given.figure, least, "")
    with pytest.raises(BudgetMissed, match="target macs=3: cannot be reached"):
        fit(ALLOCATIONS["uniform"](given), given.figure, least - 1, "macs=3")


def test_filling_stays_within():
    assert filled({"a": 1, "b": 1}, {"a": 2, "b": 9}, lambda widths: sum(widths.values()), 3) == {"a": 2, "b": 1}


# Fitting a latency


class Machine:
    """Takes `fixed` plus its share of multiply-accumulates, give or take some noise."""

    def __init__(self, fixed=0.2, noise=0.0, steps=100):
        self.fixed, self.noise, self.steps = fixed, noise, steps
        self.rng = np.random.default_rng(0)
        self.measured = 0

    def widths(self, share):
        return {"a": max(1, int(share * self.steps + 1e-9))}

    def macs(self, widths):
        return widths["a"] / self.steps

    def latency(self, widths):
        self.measured += 1
        return (self.fixed + (1 - self.fixed) * self.macs(widths)) * (1 + self.noise * self.rng.standard_normal())

    def search(self, limit):
        return search(self.widths, self.macs, self.latency, limit, "latency")

    def true(self, widths):
        return self.fixed + (1 - self.fixed) * self.macs(widths)


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("fixed", [0.0, 0.2])
def test_a_latency_is_found_within_few_measurements(limit, fixed):
    machine = Machine(fixed)
    found = machine.search(limit)
    assert 0.96 * limit <= found.latency <= limit
    assert machine.measured <= 8


@pytest.mark.parametrize("limit", [0.4, 0.6])
def test_a_latency_is_found_in_noise(limit):
    found = Machine(noise=0.02).search(limit)
    assert Machine().true(found.widths) == pytest.approx(limit, rel=0.05)


def test_the_luckiest_of_noisy_candidates_does_not_win():
    """The control: a single measurement each, in much noise, is off by more than the search is."""
    errors, lucky = [], []
    for seed in range(30):
        machine = Machine(noise=0.05)
        machine.rng = np.random.default_rng(seed)
        errors.append(abs(machine.true(machine.search(0.5).widths) / 0.5 - 1))
        tries = {share: machine.latency(machine.widths(share)) for share in np.linspace(0.3, 0.7, 8)}
        fitting = min(tries, key=lambda share: abs(tries[share] - 0.5))
        lucky.append(abs(machine.true(machine.widths(fitting)) / 0.5 - 1))
    assert np.mean(errors) < np.mean(lucky)


def test_a_latency_that_fixed_costs_exclude_is_refused():
    with pytest.raises(BudgetMissed, match="the fastest of"):
        Machine(fixed=0.6).search(0.5)


def test_wide_steps_are_taken_from_below():
    found = Machine(fixed=0.0, steps=4).search(0.6)
    assert found.widths == {"a": 2}


def test_a_step_of_widths_does_not_end_the_search():
    """Time that falls faster than the multiply-accumulates: the straight line ends within a step, below the target."""
    machine = Machine(steps=10)
    found = search(machine.widths, machine.macs, lambda widths: machine.macs(widths) ** 2, 0.5, "latency")
    assert found.widths == {"a": 7}
