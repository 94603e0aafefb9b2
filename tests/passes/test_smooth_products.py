"""Both sides of products of activations get the same ranges: queries and keys, what is written and what is read."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import PromiseBroken
from bevel.ir.joint import scale_within
from bevel.passes.execution import Execution
from bevel.passes.pipeline import optimize
from bevel.passes.scaling import motions
from bevel.passes.smooth import Smooth
from bevel.testing import check_pass
from tests import zoo
from tests.passes import test_planted_errors as fused
from tests.passes.nets import Net
from tests.test_mamba import feed, scan

PRODUCTS = "smooth{products=true}"


def largest(model: ir.Model, name: str, feeds) -> np.ndarray:
    """The largest magnitudes of a value along its last axis."""
    copy = model.clone()
    value = next(value for node in copy.graph for value in node.outputs if value.name == name)
    copy.graph.outputs.append(value)
    with Execution().open(copy) as runs:
        return np.max([np.abs(runs.run(each)[name]).max((0, 1)) for each in feeds], axis=0)


def outlying() -> Net:
    """The second channel of the first head of keys is thirty times as large as it was."""
    net = Net("grouped")
    keys = net["wk"]
    keys[:, 1] *= 30
    net.put("wk", keys)
    return net


def test_queries_take_half_of_the_outliers_of_keys_head_by_head() -> None:
    net = outlying()
    check_pass(Smooth(products=True), net.model, net.feeds)
    (step,) = optimize(net.model, PRODUCTS, calibration=net.feeds).steps
    assert any(note.startswith("1 products of activations evened out") for note in step.notes)
    queries, keys = (largest(net.model, name, net.feeds) for name in ("q0", "k0"))
    np.testing.assert_allclose(queries.reshape(2, 2, 3).max(1).ravel(), keys, rtol=1e-5)


def test_without_the_option_they_stay() -> None:
    net = outlying()
    before = net["wk"]
    optimize(net.model, "smooth", calibration=net.feeds)
    assert np.array_equal(net["wk"], before)


def test_powers_of_two_round_nothing() -> None:
    net = outlying()
    (step,) = optimize(net.model, "smooth{products=true exact=true}", calibration=net.feeds).steps
    assert step.error == 0


def test_what_is_written_to_states_and_what_is_read_of_them() -> None:
    model, feeds = scan(), [{"u": feed()}]
    optimize(model, PRODUCTS, calibration=feeds)
    written, read = np.split(largest(model, "p", feeds)[3:], 2)
    np.testing.assert_allclose(written, read, rtol=1e-5)


def test_gates_that_stay_shut_are_in_nobodys_way() -> None:
    """Rotary positions look like gates, and are opened for nothing."""
    model, feeds = bevel.load(zoo.path("llama", "dynamo")), [feed for feed, _ in zoo.trials("llama")]
    (step,) = optimize(model, "smooth{gates=true products=true}", calibration=feeds).steps
    assert any(note.startswith("0 of") for note in step.notes)
    assert any("products of activations evened out" in note for note in step.notes)


def test_attention_in_one_node() -> None:
    model = fused.block()
    optimize(model, PRODUCTS, calibration=fused.FEEDS)
    queries, keys = (largest(model, name, fused.FEEDS) for name in ("q", "k"))
    np.testing.assert_allclose(queries.reshape(2, 2, 8).max(1).ravel(), keys, rtol=1e-5)


def test_keys_that_are_left_behind_are_caught(monkeypatch) -> None:
    def forgetful(analysis, found, factors) -> None:
        kept = {place: power for place, power in found.motion.exponents.items() if place.value.name != "wk"}
        scale_within(analysis, replace(found, motion=replace(found.motion, exponents=kept)), factors)

    monkeypatch.setattr(motions, "scale_within", forgetful)
    net = outlying()
    with pytest.raises(PromiseBroken, match="smooth"):
        optimize(net.model, PRODUCTS, calibration=net.feeds)
