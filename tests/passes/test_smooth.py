from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from bevel.errors import PromiseBroken
from bevel.ir.transform import move
from bevel.passes.execution import Execution
from bevel.passes.fitting.layers import layers
from bevel.passes.pipeline import optimize
from bevel.passes.scaling import motions
from bevel.passes.scaling.columns import columns
from bevel.passes.scaling.factors import WIDEST, salient, smoothing
from bevel.passes.scaling.outliers import outliers
from bevel.passes.smooth import Smooth
from bevel.testing import check_pass
from tests.graphs import graph
from tests.passes.nets import Net
from tests.test_mamba import feed, scan

NORMS = {
    "LayerNormalization": "h = LayerNormalization <axis = -1> (x, gain, bias)",
    "RMSNormalization": "m = Mul (x, x)  a = Constant <value = int64[1] {-1}> ()  e = ReduceMean (m, a)  "
    "s = Sqrt (e)  d = Div (x, s)  g = Mul (d, gain)  h = Add (g, bias)",
}
ATTENTION = """
net (float[n, t, 16] x) => (float[n, t, 16] y) {
  %s
  q = MatMul (h, wq)
  k = MatMul (h, wk)
  v = MatMul (h, wv)
  kt = Transpose <perm = [0, 2, 1]> (k)
  z = MatMul (q, kt)
  p = Softmax (z)
  o = MatMul (p, v)
  y = MatMul (o, wo)
}
"""
MATRICES = {"gain": (16,), "bias": (16,), "wq": (16, 8), "wk": (16, 8), "wv": (16, 8), "wo": (8, 16)}
OUTLIER = 5


def put(model, name, array):
    model.graph.initializers[name].const_value = ir.tensor(np.asarray(array, np.float32), name=name)


def content(model, name):
    return model.graph.initializers[name].const_value.numpy()


def attention(norm="LayerNormalization"):
    """One channel of the norm is a hundred times as large as the others, and its weights as small."""
    model = graph(ATTENTION % NORMS[norm], MATRICES)
    large = np.where(np.arange(16) == OUTLIER, 100, 1)
    put(model, "gain", large)
    for name in ("wq", "wk", "wv"):
        put(model, name, content(model, name) / (4 * large[:, None]))
    return model


def feeds(*shape, count=2):
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((4, *shape)).astype(np.float32)} for _ in range(count)]


def read(model, wanted, inputs):
    """What a layer reads, and what it gives, as rows."""
    copy = model.clone()
    node = next(layer for layer in layers(copy) if layer.weight.name == wanted)
    copy.graph.outputs.append(node.data)
    with Execution().open(copy) as runs:
        rows = np.concatenate([runs.run(feed)[node.data.name].reshape(-1, node.data.shape[-1]) for feed in inputs])
    return rows.astype(np.float64), node.content()[0]


def int8_error(model, wanted, inputs):
    """The relative error of a layer's output when its input has eight bits and one scale."""
    rows, weights = read(model, wanted, inputs)
    step = np.abs(rows).max() / 127
    change = (np.rint(rows / step) * step - rows) @ weights.T
    return np.linalg.norm(change) / np.linalg.norm(rows @ weights.T)


@pytest.mark.parametrize("norm", NORMS)
def test_outliers_move_into_weights(norm):
    model, inputs = attention(norm), feeds(6, 16)
    check_pass(Smooth(), model, inputs)
    smoothed = model.clone()
    (step,) = optimize(smoothed, "smooth", calibration=inputs).steps
    assert len(list(smoothed.graph)) == len(list(model.graph))
    for name in ("wq", "wk", "wv"):
        assert int8_error(smoothed, name, inputs) < 0.3 * int8_error(model, name, inputs)
    shared = [content(smoothed, name) / content(model, name) for name in ("wq", "wk", "wv")]
    assert np.allclose(shared[0], shared[1])
    assert np.linalg.matrix_rank(shared[2] / shared[0], tol=1e-3) == 1  # values are scaled against wo, too
    assert "4 of 4 layers read scaled inputs" in step.notes
    assert "now (wq)" in step.notes[0]


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_ranges_are_what_the_formula_says(alpha):
    model, inputs = attention(), feeds(6, 16)
    rows, _ = read(model, "wq", inputs)
    ranges = np.abs(rows).max(0)
    weights = np.max([np.abs(content(model, name)).max(1) for name in ("wq", "wk", "wv")], axis=0)
    optimize(model, Smooth(alpha=alpha), calibration=inputs)
    rows, _ = read(model, "wq", inputs)
    assert np.allclose(np.abs(rows).max(0), ranges ** (1 - alpha) * weights ** (1 - alpha), rtol=1e-4)


def test_channels_that_stand_out_are_scaled_alone():
    model, inputs = attention(), feeds(6, 16)
    check_pass(Smooth(outliers=True), model, inputs)
    smoothed = model.clone()
    optimize(smoothed, "smooth{outliers=true}", calibration=inputs)
    largest = np.abs(read(model, "wq", inputs)[0]).max(0)
    factor = np.sqrt(largest[OUTLIER] / np.delete(largest, OUTLIER).max())
    for name in ("wq", "wk"):
        ratio = content(smoothed, name) / content(model, name)
        assert np.allclose(ratio, np.where(np.arange(16) == OUTLIER, factor, 1)[:, None], rtol=1e-4)
        assert int8_error(smoothed, name, inputs) < 0.3 * int8_error(model, name, inputs)


def test_without_outliers_none_is_scaled():
    model, inputs = attention(), feeds(6, 16)
    put(model, "gain", np.ones(16))
    optimize(model, "smooth{outliers=true}", calibration=inputs)
    assert np.array_equal(content(model, "gain"), np.ones(16))


def test_outliers_begin_at_the_widest_gap():
    normal = np.random.default_rng(0).uniform(1, 2, 60)
    values = np.concatenate([normal, [3.6, 3.8, 4.0, 9.0, 9.5]])
    assert (values > 3.5).sum() == 5  # all of which are far above the quartiles
    assert np.flatnonzero(outliers(values)).tolist() == [63, 64]
    assert not outliers(normal).any()


def test_powers_of_two_round_nothing():
    model, inputs = attention(), feeds(6, 16)
    before = content(model, "wq")
    (step,) = optimize(model, Smooth(exact=True), calibration=inputs).steps
    assert step.error == 0
    ratio = content(model, "wq") / before
    assert np.array_equal(np.exp2(np.rint(np.log2(ratio))), ratio) and ratio.max() >= 4


def test_values_are_scaled_channel_by_channel():
    net = Net("grouped")
    planted = net["wo"]
    planted[4] *= 30  # the second channel of the second query of the first key-value head
    net.put("wo", planted)
    optimize(net.model, "smooth", calibration=net.feeds)
    ratio = (net["wo"] / planted)[:, 0].reshape(2, 2, 3)
    assert np.allclose(ratio[:, 0], ratio[:, 1]), "both queries of a key-value head read the same value"
    assert ratio[0, 0, 1] < 0.4 * np.delete(ratio[:, 0].ravel(), 1).min()
    inputs, weights = (np.abs(each).reshape(-1, 2, 2, 3).max((0, 2)) for each in (net.inner("o"), net["wo"].T))
    assert np.allclose(inputs, weights, rtol=1e-4)


def test_a_depthwise_kernel_is_scaled_against_both_neighbours():
    net = Net("depthwise")
    check_pass(Smooth(), net.model, net.feeds)
    before = {name: net[name] for name in ("w1", "w2", "w3")}
    (step,) = optimize(net.model, "smooth", calibration=net.feeds).steps
    assert any("3 of 4 layers" in note for note in step.notes)
    assert any("graph input 'x'" in note for note in step.notes)
    assert not any(np.allclose(net[name], array) for name, array in before.items())


def test_what_stands_in_the_way_is_named():
    text = "m (float[n, 6] x) => (float[n, 4] y) { h = MatMul (x, w)  t = Tanh (h)  y = MatMul (t, v) }"
    model = graph(text, {"w": (6, 8), "v": (8, 4)})
    (step,) = optimize(model, "smooth", calibration=feeds(6)).steps
    assert "no layer reads what a scale can move" in step.notes
    assert any("the input of v: Tanh" in note and "not linear" in note for note in step.notes)


def test_a_stream_that_others_read_stays():
    text = """
    m (float[n, 6] x) => (float[n, 6] y) {
      h = LayerNormalization <axis = -1> (x, gain)
      u = MatMul (h, w)
      s = Add (u, h)
      y = LayerNormalization <axis = -1> (s, last)
    }
    """
    model = graph(text, {"gain": (6,), "w": (6, 6), "last": (6,)})
    (step,) = optimize(model, "smooth", calibration=feeds(6)).steps
    assert any("the input of w: LayerNormalization" in note for note in step.notes)


def test_only_and_skip_choose_among_motions():
    model = attention()
    before = {name: content(model, name) for name in ("gain", "wo")}
    optimize(model, "smooth{only=gain}", calibration=feeds(6, 16))
    assert not np.allclose(content(model, "gain"), before["gain"])
    assert np.array_equal(content(model, "wo"), before["wo"])


def test_a_bias_that_is_left_behind_is_caught(monkeypatch):
    def forgetful(analysis, moves):
        for each in moves:
            kept = {place: power for place, power in each.motion.exponents.items() if place.value.name != "bias"}
            move(analysis, [replace(each, motion=replace(each.motion, exponents=kept))])

    monkeypatch.setattr(motions, "move", forgetful)
    with pytest.raises(PromiseBroken, match="smooth"):
        optimize(attention(), "smooth", calibration=feeds(6, 16))


GATES = {
    "silu": "s = Sigmoid (u)  g = Mul (u, s)",
    "gelu": "d = Div (u, two)  e = Erf (d)  f = Add (e, one)  o = Mul (u, f)  g = Mul (o, half)",
    "gelu by tanh": "h = Mul (u, half)  p = Pow (u, three)  a = Add (u, p)  t = Tanh (a)  f = Add (t, one)  "
    "g = Mul (h, f)",
}
GATED = """
net (float[n, 6] x) => (float[n, 4] y)
<float one = {1}, float two = {1.4142}, float three = {3}, float half = {0.5}> {
  m = MatMul (x, w1)
  u = Add (m, b1)
  %s
  y = MatMul (g, w2)
}
"""


def gated(name):
    return graph(GATED % GATES[name], {"w1": (6, 8), "b1": (8,), "w2": (8, 4)})


@pytest.mark.parametrize("name", GATES)
def test_gates_are_opened_by_one_product_more(name):
    model, inputs = gated(name), feeds(6)
    (step,) = optimize(model.clone(), "smooth", calibration=inputs).steps
    assert "no layer reads what a scale can move" in step.notes
    check_pass(Smooth(gates=True), model, inputs)
    before, nodes = read(model, "w2", inputs), len(list(model.graph))
    ranges, weights = (np.abs(each).max(0) for each in before)
    (step,) = optimize(model, "smooth{gates=true}", calibration=inputs).steps
    assert len(list(model.graph)) == nodes + 1
    assert "1 of 1 gates opened, by one product more each" in step.notes
    rows, matrix = read(model, "w2", inputs)
    assert np.allclose(np.abs(rows).max(0), np.sqrt(ranges * weights), rtol=1e-3)
    assert np.allclose(np.abs(matrix).max(0), np.sqrt(ranges * weights), rtol=1e-3)


def test_gates_that_help_nobody_stay_shut():
    text = (GATED % GATES["silu"]).replace("y = MatMul (g, w2)", "k = Tanh (g)  y = MatMul (k, w2)")
    model = graph(text, {"w1": (6, 8), "b1": (8,), "w2": (8, 4)})
    before = len(list(model.graph)), set(model.graph.initializers)
    (step,) = optimize(model, "smooth{gates=true}", calibration=feeds(6)).steps
    assert (len(list(model.graph)), set(model.graph.initializers)) == before
    assert step.error == 0 and "0 of 1 gates opened, by one product more each" in step.notes


def test_a_gate_that_is_not_scaled_back_is_caught(monkeypatch):
    def forgetful(analysis, moves):
        for each in moves:
            kept = {place: power for place, power in each.motion.exponents.items() if "gate" not in place.value.name}
            move(analysis, [replace(each, motion=replace(each.motion, exponents=kept))])

    monkeypatch.setattr(motions, "move", forgetful)
    with pytest.raises(PromiseBroken, match="smooth"):
        optimize(gated("silu"), "smooth{gates=true}", calibration=feeds(6))


def test_the_gate_of_a_mamba_block():
    """Step and convolution are smoothed as they are; other projections through gates, x's across the Scan, too."""
    counts = {}
    for gates in (False, True):
        (step,) = optimize(scan(), Smooth(gates=gates), calibration=[{"u": feed(4)}]).steps
        counts[gates] = next(note for note in step.notes if "layers read" in note)
    assert counts == {False: "2 of 5 layers read scaled inputs", True: "4 of 5 layers read scaled inputs"}


def test_factors_are_positive_and_finite_whatever_the_ranges():
    ranges = np.array([0.0, 1e-30, 1.0, 1e30])
    for scale in (smoothing(ranges, ranges[::-1], 0.5), salient(ranges, 1.0), salient(np.zeros(3), 0.5)):
        assert np.isfinite(scale).all() and (scale > 0).all() and scale.max() / scale.min() <= WIDEST**2
    assert smoothing(ranges, np.ones(4), 0.5)[0] == 1


def test_columns_are_those_of_input_channels():
    for name in ("depthwise", "convs", "mlp"):
        net = Net(name)
        for layer in layers(net.model):
            array = np.abs(net[layer.weight.name])
            if layer.groups == 1:
                others = tuple(axis for axis in range(array.ndim) if axis != layer.in_axis)
                assert np.allclose(columns(layer), array.max(others))
            else:
                per = array.reshape(layer.groups, -1, *array.shape[1:]).max((1, *range(3, array.ndim + 1)))
                assert np.allclose(columns(layer), per.ravel())


def test_channels_of_a_convolution_in_groups_are_scaled_alike_in_all_groups():
    """Groups and their channels are on two axes of its weight, which no factors of each group's own can multiply."""
    text = (
        "m (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) { h = Conv <kernel_shape = [1, 1]> (x, a, b) r = Relu (h)"
        " g = Conv <group = 2, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, w, c) s = Relu (g)"
        " y = Conv <kernel_shape = [1, 1]> (s, v) }"
    )
    model = graph(text, {"a": (8, 3, 1, 1), "b": (8,), "w": (8, 4, 3, 3), "c": (8,), "v": (4, 8, 1, 1)})
    before = model.graph.initializers["w"].const_value.numpy().copy()
    optimize(model, Smooth())
    changed = model.graph.initializers["w"].const_value.numpy() / before
    shares = changed[:, :, :1, :1] / changed[:, :1, :1, :1]
    np.testing.assert_allclose(shares, np.broadcast_to(shares[:1], shares.shape), rtol=1e-5)
    assert np.ptp(shares) > 0.01
