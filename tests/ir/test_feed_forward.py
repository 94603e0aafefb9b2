import numpy as np
import pytest

import bevel
from bevel.errors import EditRefused
from bevel.ir.feed_forward import feed_forward, feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.split import Partition, split
from bevel.passes.base import REASSOCIATION_RTOL, Preserving
from bevel.passes.execution import Execution
from bevel.passes.verify import verify
from tests import zoo
from tests.graphs import graph, mlp, snapshot

GATED = """
gated (float[n, s, 6] x) => (float[n, s, 6] y) {
  g = MatMul (x, gate)
  u = MatMul (x, up)
  ub = Add (u, bias)
  e = Sigmoid (g)
  a = Mul (g, e)
  h = Mul (a, ub)
  d = MatMul (h, down)
  o = Add (d, shift)
  y = Add (o, x)
}
"""
GATED_WEIGHTS = {"gate": (6, 12), "up": (6, 12), "bias": (12,), "down": (12, 6), "shift": (6,)}
FUSED = """
fused (float[n, s, 6] x) => (float[n, s, 4] y) <int64[2] halves = {12, 12}> {
  t = Transpose <perm = [1, 0]> (both)
  w = MatMul (x, t)
  g, u = Split <axis = 2> (w, halves)
  a = Gelu (g)
  h = Mul (a, u)
  y = MatMul (h, down)
}
"""
FUSED_WEIGHTS = {"both": (24, 6), "down": (12, 4)}
CONVS = """
convs (float[n, 5, 3, 2] x) => (float[n, 4, 3, 2] y) {
  w = Conv <kernel_shape = [1, 1]> (x, up, bias)
  h = Relu (w)
  y = Conv <kernel_shape = [1, 1]> (h, down, shift)
}
"""
CONVS_WEIGHTS = {"up": (12, 5, 1, 1), "bias": (12,), "down": (4, 12, 1, 1), "shift": (4,)}
GEMMS = """
gemms (float[n, 6] x) => (float[n, 3] y) {
  h = Gemm <transB = 1> (x, up, bias)
  r = Tanh (h)
  y = Gemm <transB = 1> (r, down, shift)
}
"""
GEMMS_WEIGHTS = {"up": (12, 6), "bias": (12,), "down": (3, 12), "shift": (3,)}
LAYERS = {
    "gated": (GATED, GATED_WEIGHTS, (2, 5, 6)),
    "fused": (FUSED, FUSED_WEIGHTS, (2, 5, 6)),
    "convs": (CONVS, CONVS_WEIGHTS, (2, 5, 3, 2)),
    "gemms": (GEMMS, GEMMS_WEIGHTS, (7, 6)),
}
# Of each architecture, how many feed-forward layers it has.
FOUND = {"bert": 3, "llama-fused": 2, "convnext": 2}


def made(name):
    text, weights, shape = LAYERS[name]
    feeds = [{"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}]
    return graph(text, weights), feeds


def partition(size=12, experts=3, shared=True, seed=0):
    order = np.random.default_rng(seed).permutation(size)
    return Partition.of(order % (experts + shared) - shared, experts)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shared", [True, False])
def test_all_experts_together_are_the_layer(name, shared):
    model, feeds = made(name)
    (layer,), _ = feed_forwards(analyse(model))
    apart = model.clone()
    split(apart, {layer.name: partition(shared=shared)})
    assert verify(model, apart, feeds, Preserving()).error <= REASSOCIATION_RTOL
    hidden = [value for value in apart.graph.initializers.values() if 12 in (value.shape or ())]
    assert hidden == []


def test_an_expert_that_is_left_out_shows(monkeypatch):
    model, feeds = made("gated")
    apart = model.clone()
    monkeypatch.setattr(Partition, "owners", lambda self, size: np.zeros(size))
    split(apart, {"gate[1]": Partition(np.arange(4), (np.arange(4, 8),))})
    assert verify(model, apart, feeds, Preserving()).error > 100 * REASSOCIATION_RTOL


@pytest.mark.parametrize("name", FOUND)
def test_the_layers_of_real_architectures_are_found_and_come_apart(name):
    model = bevel.load(zoo.model(name, "dynamo"))
    layers, _ = feed_forwards(analyse(model))
    assert len(layers) == FOUND[name]
    apart = model.clone()
    split(apart, {layer.name: partition(layer.size, 3) for layer in layers})
    feeds = [feed for feed, _ in zoo.trials(name)]
    assert verify(model, apart, feeds, Preserving()).error <= REASSOCIATION_RTOL


def test_what_a_layer_is_made_of():
    model, _ = made("gated")
    (layer,), refused = feed_forwards(analyse(model))
    assert [node.outputs[0].name for node in layer.nodes] == ["g", "u", "ub", "e", "a", "h", "d"]
    assert [node.outputs[0].name for node in layer.producers] == ["g", "u"]
    assert (layer.input.name, layer.hidden.name, layer.output.name, layer.gate.name) == ("x", "h", "d", "g")
    assert {value.name for value in layer.weights} == {"gate", "up", "bias", "down"}
    assert (layer.axis, layer.rank, layer.bias, layer.channels, layer.bent.name) == (2, 3, None, (6, 6), "a")
    assert [str(each) for each in refused] == ["gate[0] (6 entries): graph input 'x'"]


def test_the_constant_of_the_last_product_is_known():
    assert {name: feed_forwards(analyse(made(name)[0]))[0][0].bias for name in LAYERS} == {
        "gated": None,
        "fused": None,
        "convs": 2,
        "gemms": 2,
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("y = Add (o, x)", "y = Add (o, x)\n  z = MatMul (h, down)"), "2 layers sum over it"),
        (("d = MatMul (h, down)", "i = CumSum (h, one)\n  d = MatMul (i, down)"), "mixes rows"),
        (("d = MatMul (h, down)", "i = LpNormalization <axis = 2> (h)\n  d = MatMul (i, down)"), "LpNormalization"),
        (("d = MatMul (h, down)", "z = Relu (h)\n  d = MatMul (h, down)"), "graph output 'z'"),
        (("u = MatMul (x, up)", "v = Relu (x)\n  u = MatMul (v, up)"), "read different values"),
        (("h = Mul (a, ub)", "m = Mul (a, ub)\n  c = ReduceMax (x)\n  h = Mul (m, c)"), "which is made elsewhere"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_the_reason(change, why):
    text = GATED.replace(*change)
    if "z =" in text:
        text = text.replace("(float[n, s, 6] y)", "(float[n, s, 6] y, float[n, s, w] z)")
    model = graph(text.replace("{\n", "<int64 one = {1}> {\n", 1), GATED_WEIGHTS)
    found, refused = feed_forwards(analyse(model))
    (reason,) = [str(each) for each in refused if each.group.size == 12]
    assert found == [] and why in reason


def test_a_square_bends_too():
    model = graph(GATED.replace("Sigmoid (g)", "Identity (g)"), GATED_WEIGHTS)
    (layer,), _ = feed_forwards(analyse(model))
    assert layer.gate.name in ("g", "e")


def test_two_linear_layers_are_no_feed_forward_layer():
    text = GEMMS.replace("Tanh", "Neg")
    found, refused = feed_forwards(analyse(graph(text, GEMMS_WEIGHTS)))
    assert not found and "one linear layer" in str(refused[0])


def test_kernels_are_refused():
    weights = CONVS_WEIGHTS | {"down": (4, 12, 3, 3)}
    text = CONVS.replace("[1, 1]> (h", '[3, 3], auto_pad = "SAME_UPPER"> (h')
    found, refused = feed_forwards(analyse(graph(text, weights)))
    assert not found and "has a kernel" in str(refused[0])


def test_refusals_leave_the_model_as_it_was():
    model = mlp()
    before = snapshot(model)
    with pytest.raises(EditRefused, match="each of 8 hidden entries once"):
        split(model, {"w1[1]": Partition(np.arange(3), (np.arange(2, 8),))})
    with pytest.raises(EditRefused, match="different sizes"):
        split(model, {"w1[1]": Partition(np.arange(1), (np.arange(1, 4), np.arange(4, 8)))})
    with pytest.raises(EditRefused, match="no feed-forward layer"):
        feed_forward(analyse(graph(CONVS.replace("Relu", "Neg"), CONVS_WEIGHTS)), "up[0]")
    assert snapshot(model) == before


def test_experts_are_parts_of_their_own():
    model, feeds = made("gemms")
    split(model, {"up[0]": partition(shared=False)})
    with Execution().open(model) as runs:
        assert runs.run(feeds[0])["y"].shape == (7, 3)
    assert len(feed_forwards(analyse(model))[0]) == 3
