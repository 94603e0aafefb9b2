import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.fitting.layers import layers
from bevel.passes.fitting.moments import moments
from tests import zoo
from tests.graphs import graph

CONVOLUTIONS = """
c1 (float[n, 4, 9, 9] x) => (float[n, c, h, w] y) {
  a = Conv <group = 2, strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 1]> (x, grouped, bias)
  b = Conv <group = 6, auto_pad = "SAME_LOWER"> (a, depthwise)
  c = Relu (b)
  y = ConvTranspose <strides = [2, 2]> (c, transposed)
}
"""
SHAPES = {"grouped": (6, 2, 3, 3), "bias": (6,), "depthwise": (6, 1, 3, 3), "transposed": (6, 5, 2, 2)}
DENSE = """
d1 (float[n, t, 4] x) => (float[n, 3] y) {
  h = MatMul (x, w1)
  t2 = Transpose <perm = [1, 0]> (w2)
  g = MatMul (h, t2)
  axes = Constant <value = int64[1] {1}> ()
  f = ReduceMean <keepdims = 0> (g, axes)
  y = Gemm <transB = 1> (f, w3, b3)
}
"""


def context(feeds, model):
    return Context(0, Calibration.of(feeds, model), Execution())


def outputs(model, feeds, values):
    copy = model.clone()
    names = [value.name for value in values]
    inner = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(inner[name] for name in names if not inner[name].is_graph_output())
    with Execution().open(copy) as runs:
        return [[answer[name] for name in names] for answer in map(runs.run, feeds)]


def energies(layer, moment):
    """The mean square of each output channel, as the moments of the input make it: the diagonal of W H W^T."""
    matrices = layer.matrices(layer.weight.const_value.numpy()).astype(np.float64)
    return np.einsum("goi,gij,goj->go", matrices, moment.second, matrices).ravel()


@pytest.mark.parametrize(
    ("text", "shapes", "size"),
    [
        (CONVOLUTIONS, {name: shape for name, shape in SHAPES.items() if name != "bias"}, (4, 9, 9)),
        (DENSE, {"w1": (4, 6), "w2": (5, 6), "w3": (3, 5)}, (7, 4)),
    ],
)
def test_moments_foretell_the_energy_of_every_output(text, shapes, size):
    model = graph(text.replace(", bias)", ")").replace(", b3)", ")"), shapes)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((n, *size)).astype(np.float32)} for n in (3, 2)]
    found = list(moments(model, layers(model), context(feeds, model)))
    assert len(found) == 3
    for layer, moment in found[:2] + [pair for pair in found[2:] if pair[0].node.op_type != "ConvTranspose"]:
        (answers,) = zip(*outputs(model, feeds, [layer.node.outputs[0]]), strict=True)
        axis = layer.channel_axis
        rows = np.concatenate([np.moveaxis(answer, axis, -1).reshape(-1, answer.shape[axis]) for answer in answers])
        assert len(rows) == moment.count
        assert np.allclose(energies(layer, moment), (rows.astype(np.float64) ** 2).mean(0), rtol=1e-4)


def test_a_transposed_convolution_reads_its_channels():
    model = graph(CONVOLUTIONS, SHAPES)
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, 4, 9, 9)).astype(np.float32)}]
    (*_, (layer, moment)) = moments(model, layers(model), context(feeds, model))
    ((data,),) = outputs(model, feeds, [layer.data])
    rows = np.moveaxis(data, 1, -1).reshape(-1, 6).astype(np.float64)
    assert np.allclose(moment.second[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    assert np.allclose(moment.mean[0], rows.mean(0), rtol=1e-4, atol=1e-6)


def test_matrices_go_back_to_arrays():
    for name in ("resnext", "mobilenet", "gpt", "unet"):
        model = bevel.load(zoo.model(name))
        for layer in layers(model):
            array = layer.weight.const_value.numpy()
            assert np.array_equal(layer.array(layer.matrices(array)), array)


@pytest.mark.parametrize("changed", [0, 1], ids=["a weight", "a weight that a node transposes"])
def test_a_change_of_a_weight_is_seen_further_on(changed):
    model = graph(DENSE, {"w1": (4, 6), "w2": (5, 6), "w3": (3, 5), "b3": (3,)})
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, 7, 4)).astype(np.float32)}]
    seen = []
    for layer, moment in moments(model, layers(model), context(feeds, model)):
        seen.append(moment.second)
        if len(seen) == changed + 1:
            doubled = 2 * layer.weight.const_value.numpy()
            layer.weight.const_value = ir.tensor(doubled, name=layer.weight.name)
    assert np.allclose(seen[changed + 1], 4 * untouched(feeds, changed + 1), rtol=1e-4)


def untouched(feeds, place):
    """The moment of a layer's input where nothing is changed."""
    model = graph(DENSE, {"w1": (4, 6), "w2": (5, 6), "w3": (3, 5), "b3": (3,)})
    return [moment.second for _, moment in moments(model, layers(model), context(feeds, model))][place]


@pytest.mark.parametrize("name", ["llama", "convnext", "lstm", "unet", "swin"])
def test_whole_models_are_walked(name):
    model = bevel.load(zoo.model(name))
    found = layers(model)
    seen = list(bevel_moments(model, found))
    assert [layer.node for layer, _ in seen] == [layer.node for layer in found]
    for layer, moment in seen:
        width = layer.matrices(layer.weight.const_value.numpy()).shape
        assert moment.second.shape == (width[0], width[2], width[2])
        assert np.isfinite(moment.second).all()


def test_a_layer_may_read_what_is_computed_from_weights_alone():
    text = """
    k1 (float[n, 4] x) => (float[n, 3] y) {
      t = Relu (table)
      u = MatMul (t, w1)
      v = MatMul (x, w2)
      s = Add (u, v)
      y = MatMul (s, w3)
    }
    """
    model = graph(text, {"table": (1, 5), "w1": (5, 6), "w2": (4, 6), "w3": (6, 3)})
    feeds = [{"x": np.ones((2, 4), np.float32)}, {"x": np.ones((3, 4), np.float32)}]
    table = np.maximum(model.graph.initializers["table"].const_value.numpy(), 0).astype(np.float64)
    seconds = [moment.second[0] for _, moment in moments(model, layers(model), context(feeds, model))]
    assert len(seconds) == 3
    assert np.allclose(seconds[0], table.T @ table, rtol=1e-4)


def bevel_moments(model, found):
    from bevel.passes.pipeline import calibration_of

    return moments(model, found, Context(0, calibration_of(None, model, 0), Execution(), samples=8))


def test_tokens_of_a_text_count_for_fewer_than_as_many_samples():
    def apart(shape):
        model = graph("t (float[n, t, 4] x) => (float[n, t, 3] y) { y = MatMul (x, w) }", {"w": (4, 3)})
        ((_, moment),) = moments(model, layers(model), context([{"x": np.ones(shape, np.float32)}] * 2, model))
        return moment.count, moment.apart

    assert apart((6, 1, 4)) == (12, 12)
    assert apart((2, 3, 4)) == (12, 6)
    assert apart((4, 3, 4)) == (24, 12)
