import numpy as np
import onnx_ir as ir
import pytest

from bevel.errors import UsageError
from bevel.passes.awq import Awq
from bevel.passes.execution import Execution
from bevel.passes.fitting.layers import layers
from bevel.passes.formats import block_format
from bevel.passes.pipeline import optimize
from bevel.passes.scaling.search import Part, best
from bevel.testing import check_pass
from tests.graphs import graph
from tests.passes.nets import Net

NORM = """
net (float[n, 32] x) => (float[n, 24] y) {
  h = LayerNormalization <axis = -1> (x, gain, bias)
  u = MatMul (h, w1)
  g = MatMul (h, w2)
  r = Relu (g)
  p = Mul (u, r)
  y = MatMul (p, w3)
}
"""
SHAPES = {"gain": (32,), "bias": (32,), "w1": (32, 40), "w2": (32, 40), "w3": (40, 24)}
INT3 = "awq{format=int3 block=16}"


def salient(size=10.0):
    """Some channels of the norm are larger than others, and their weights are not smaller for it."""
    model = graph(NORM, SHAPES)
    large = np.where(np.arange(32) % 8 == 3, size, 1).astype(np.float32)
    model.graph.initializers["gain"].const_value = ir.tensor(large, name="gain")
    return model


def feeds():
    rng = np.random.default_rng(4)
    return [{"x": rng.standard_normal((64, 32)).astype(np.float32)} for _ in range(2)]


def quantized_error(model, original, name="int3", block=16):
    """The relative error of the outputs, against those of the original, with quantized weights."""
    rounded = model.clone()
    for layer in layers(rounded):
        array = block_format(name).round_trip(layer.content().astype(np.float32), -1, block)
        layer.weight.const_value = ir.tensor(np.ascontiguousarray(layer.array(array)), name=layer.weight.name)
    with Execution().open(rounded) as left, Execution().open(original) as right:
        pairs = [(left.run(feed)["y"], right.run(feed)["y"]) for feed in feeds()]
    return np.linalg.norm([a - b for a, b in pairs]) / np.linalg.norm([b for _, b in pairs])


def test_weights_that_meet_large_inputs_round_less():
    model = salient()
    check_pass(Awq(format="int3", block=16), model, feeds())
    scaled = model.clone()
    (step,) = optimize(scaled, INT3, calibration=feeds()).steps
    assert len(list(scaled.graph)) == len(list(model.graph))
    assert quantized_error(scaled, model) < 0.8 * quantized_error(model, model)
    assert "3 of 3 layers read scaled inputs" in step.notes
    with_scales, without = (float(text.split()[0]) for text in reversed(step.notes[1].split(": ")[1].split(", ")[:2]))
    assert with_scales < without
    ratio = scaled.graph.initializers["gain"].const_value.numpy() / model.graph.initializers["gain"].const_value.numpy()
    assert ratio[3] < ratio[0], "what is large is divided"


@pytest.mark.parametrize("name", ["int4", "int2", "bfp4"])
def test_no_layer_is_worse_off_in_its_own_format(name):
    """The grid begins with no scale at all, so that the sum over the readers of a scale cannot grow."""
    rng = np.random.default_rng(0)
    quantized = block_format(name)
    for seed in range(5):
        rows = rng.standard_normal((200, 24)) * rng.lognormal(0, seed / 2, 24)
        moment = rows.T @ rows / 200
        parts = [
            Part(
                rng.standard_normal((1, 8, 24), np.float32),
                moment[None],
                np.arange(24)[None],
                np.ones((1, 24)),
            )
            for _ in range(2)
        ]

        def rounded(weights):
            return quantized.round_trip(weights, -1, 8)

        for root in (0, 1, 2):
            found = best(parts, np.abs(rows).mean(0), rounded, 20, root=root)
            after, before = (sum(p.error(s, rounded) for p in parts) for s in (found.scale, np.ones(24)))
            assert after <= before
            assert (before, after) == pytest.approx((sum(found.before), sum(found.after)))


def test_inputs_that_are_alike_are_left_alone():
    rng = np.random.default_rng(0)
    part = Part(rng.standard_normal((1, 8, 24)), np.eye(24)[None], np.arange(24)[None], np.ones((1, 24)))
    assert np.array_equal(best([part], np.ones(24), np.rint, 20).scale, np.ones(24))


def test_powers_of_two_round_nothing():
    (step,) = optimize(salient(), Awq(format="int3", block=16, exact=True), calibration=feeds()).steps
    assert step.error == 0


def test_convolutions_and_heads():
    for name in ("depthwise", "grouped"):
        net = Net(name)
        step = check_pass(Awq(block=8), net.model, net.feeds)
        assert any("layers read scaled inputs" in note and not note.startswith("0 ") for note in step.notes)


def test_what_overflows_is_not_scaled():
    model = salient()
    huge = [{"x": np.full((4, 32), 3e38, np.float32)}]
    optimize(model, INT3, calibration=huge, verify=False)
    assert all(np.isfinite(value.const_value.numpy()).all() for value in model.graph.initializers.values())


def test_a_format_that_is_none():
    with pytest.raises(UsageError, match="int44"):
        check_pass(Awq(format="int44"), salient(), feeds())
