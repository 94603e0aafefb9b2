from dataclasses import replace

import numpy as np
import pytest

from bevel.errors import PromiseBroken
from bevel.ir.groups import analyse
from bevel.ir.transform import move
from bevel.passes.equalize import Equalize
from bevel.passes.fitting.layers import layers
from bevel.passes.pipeline import optimize
from bevel.passes.scaling import balance, motions
from bevel.passes.scaling.balance import SETTLED, Balance, balanced
from bevel.testing import check_pass
from tests.passes.nets import Net

CLOSE = 3 * SETTLED  # several chains meet in one weight


def uneven(name, **weights):
    """A network in which some channels are a hundred times as large as others, and what reads them as small."""
    net = Net(name)
    for weight, axis in weights.items():
        array = net[weight]
        sizes = np.geomspace(0.1, 10, array.shape[axis]) ** (1 - 2 * (weight != next(iter(weights))))
        net.put(weight, np.moveaxis(np.moveaxis(array, axis, -1) * sizes, -1, axis))
    return net


def ranges(array, axis):
    return np.abs(array).max(tuple(place for place in range(array.ndim) if place != axis))


def test_two_layers_get_the_same_ranges():
    net = uneven("mlp", w1=1, w2=0)
    check_pass(Equalize(), net.model, net.feeds)
    (step,) = optimize(net.model, "equalize", calibration=net.feeds).steps
    assert np.allclose(ranges(net["w1"], 1), ranges(net["w2"], 0), rtol=CLOSE)
    assert "1 chains of 2 weights equalized, in 2 rounds" in step.notes


@pytest.mark.parametrize("first", ["w1", "w2", "w3"])
def test_a_chain_with_a_depthwise_kernel_settles(first):
    net = Net("depthwise")
    array = net[first]
    net.put(first, array * np.geomspace(0.01, 100, len(array)).reshape(-1, 1, 1, 1))
    optimize(net.model, "equalize", calibration=net.feeds)
    w1, w2, w3 = (net[name] for name in ("w1", "w2", "w3"))
    assert np.allclose(ranges(w1, 0), ranges(w2, 0), rtol=CLOSE)
    assert np.allclose(ranges(w2, 0), ranges(w3, 1), rtol=CLOSE)
    assert len(list(net.model.graph)) == 5


@pytest.mark.parametrize(("place", "kept"), [(0, 0), (2, 1)])
def test_chains_that_drive_each_other_on_are_left_at_their_best(monkeypatch, place, kept):
    def settled():
        net = Net("depthwise")
        weight = f"w{place + 1}"
        net.put(weight, net[weight] * np.geomspace(0.01, 100, len(net[weight])).reshape(-1, 1, 1, 1))
        analysis = analyse(net.model)
        found = Balance(analysis, balanced(analysis, (), ()))
        before = np.mean(list(found.precision().values()))
        return found.settle(40), np.mean(list(found.precision().values())) - before

    assert settled()[0] > 2
    monkeypatch.setattr(balance, "FARTHEST", 1.0)
    rounds, gained = settled()
    assert rounds == kept
    assert gained > 0 if kept else gained == 0


@pytest.mark.parametrize("passes", ["equalize", "fold,equalize"])
def test_it_goes_through_a_normalization(passes):
    net = uneven("convs", w1=0, w2=1)
    optimize(net.model, passes, calibration=net.feeds)
    assert np.allclose(ranges(net["w1"], 0), ranges(net["w2"], 1), rtol=CLOSE)


def test_one_scale_for_a_weight_wastes_less():
    net = uneven("depthwise", w1=0, w2=0)
    before = precision(net)
    optimize(net.model, "equalize", calibration=net.feeds)
    assert min(precision(net).values()) > 2 * min(before.values())


def precision(net):
    analysis = analyse(net.model)
    found = Balance(analysis, balanced(analysis, (), ())).precision()
    return {str(each): value for each, value in found.items()}


def test_what_is_balanced_stays():
    net = Net("depthwise")
    optimize(net.model, "equalize", calibration=net.feeds)
    first = {layer.weight.name: net[layer.weight.name] for layer in layers(net.model)}
    optimize(net.model, "equalize", calibration=net.feeds)
    assert all(np.allclose(net[name], array, rtol=CLOSE) for name, array in first.items())


def test_powers_of_two_round_nothing():
    net = uneven("mlp", w1=1, w2=0)
    (step,) = optimize(net.model, Equalize(exact=True), calibration=net.feeds).steps
    assert step.error == 0
    ratio = ranges(net["w1"], 1) / ranges(net["w2"], 0)
    assert ratio.max() <= 2 * (1 + CLOSE) and ratio.min() >= 0.5 / (1 + CLOSE)


def test_values_and_the_output_of_attention():
    net = Net("grouped")
    net.put("wv", net["wv"] * np.repeat([0.01, 1], 3))
    optimize(net.model, "equalize{only=wv}", calibration=net.feeds)
    heads = np.abs(net["wv"]).reshape(8, 2, 3).max((0, 2))
    assert np.allclose(heads, np.abs(net["wo"]).reshape(2, 2, 3, 8).max((1, 2, 3)), rtol=CLOSE)


def test_dead_channels_stay():
    net = Net("mlp")
    dead = net["w1"]
    dead[:, 2] = 0
    net.put("w1", dead)
    optimize(net.model, "equalize", calibration=net.feeds)
    assert np.isfinite(net["w2"]).all() and not net["w1"][:, 2].any()


def test_a_network_without_chains():
    net = Net("mlp")
    (step,) = optimize(net.model, "equalize{skip=w1}", calibration=net.feeds).steps
    assert "no two layers have only what a scale passes between them" in step.notes and step.error == 0


def test_a_bias_that_is_left_behind_is_caught(monkeypatch):
    def forgetful(analysis, moves):
        for each in moves:
            kept = {place: power for place, power in each.motion.exponents.items() if place.value.name != "b1"}
            move(analysis, [replace(each, motion=replace(each.motion, exponents=kept))])

    monkeypatch.setattr(motions, "move", forgetful)
    net = uneven("mlp", w1=1, w2=0)
    with pytest.raises(PromiseBroken, match="equalize"):
        optimize(net.model, "equalize", calibration=net.feeds)
