from dataclasses import replace

import numpy as np
import pytest

from bevel.errors import EditRefused
from bevel.ir.groups import analyse
from bevel.ir.joint import joint, scale_within
from bevel.ir.within import host
from bevel.passes.execution import Execution
from tests.graphs import graph
from tests.passes.nets import GROUPED, GROUPED_WEIGHTS, Net

# The channels of all heads are multiplied by one vector.
SHARED = GROUPED.replace("o0 = MatMul (p, v)", "o9 = MatMul (p, v)  o0 = Mul (o9, gain)")


def answers(model, feeds):
    with Execution().open(model) as runs:
        return [runs.run(feed)["y"] for feed in feeds]


def values_of(model):
    """The motion of the channels of values, and of the heads."""
    analysis = analyse(model)
    group = analysis["wv[1.1]"]
    return analysis, group, group.motions("scale")


@pytest.fixture
def powers():
    return np.exp2(np.random.default_rng(0).integers(-3, 4, (2, 3)))


def test_every_head_scales_its_channels_by_factors_of_its_own(powers):
    net = Net("grouped")
    analysis, group, (motion,) = values_of(net.model)
    before = {name: net[name] for name in GROUPED_WEIGHTS}
    found = joint(analysis, group, motion, host(analysis, group))
    assert (found.size, found.heads.size) == (6, 2)
    expected = answers(net.model, net.feeds)
    scale_within(analysis, found, powers)
    assert all(map(np.array_equal, expected, answers(net.model, net.feeds)))
    assert np.array_equal(net["wv"], before["wv"] * powers.ravel())
    assert np.array_equal(net["wo"], before["wo"] / np.repeat(powers[:, None], 2, 1).reshape(-1, 1))
    assert np.array_equal(net["wq"], before["wq"])


def test_queries_and_keys_move_in_opposite_ways(powers):
    net = Net("grouped")
    analysis = analyse(net.model)
    group = analysis["wq[1.2]"]
    expected = answers(net.model, net.feeds)
    scale_within(analysis, joint(analysis, group, group.motions("scale")[0], host(analysis, group)), powers)
    assert all(map(np.array_equal, expected, answers(net.model, net.feeds)))


def test_what_all_heads_share_ties_them_together():
    analysis, group, motions = values_of(graph(SHARED, {**GROUPED_WEIGHTS, "gain": (3,)}))
    assert len(motions) == 2 and not any(joint(analysis, group, motion, host(analysis, group)) for motion in motions)


def test_a_tensor_that_is_left_behind_shows(powers):
    net = Net("grouped")
    analysis, group, (motion,) = values_of(net.model)
    kept = {each: power for each, power in motion.exponents.items() if each.value.name != "wo"}
    found = replace(joint(analysis, group, motion, host(analysis, group)), motion=replace(motion, exponents=kept))
    expected = answers(net.model, net.feeds)
    scale_within(analysis, found, powers)
    assert not all(map(np.allclose, expected, answers(net.model, net.feeds)))


def test_factors_are_positive():
    net = Net("grouped")
    analysis, group, (motion,) = values_of(net.model)
    for bad in (np.zeros((2, 3)), np.full((2, 3), np.inf), np.ones(3)):
        with pytest.raises(EditRefused, match="2 x 3 positive factors"):
            scale_within(analysis, joint(analysis, group, motion, host(analysis, group)), bad)
