import io

import numpy as np
import onnx
import pytest

import bevel
from bevel.errors import EditRefused, PromiseBroken, UsageError
from bevel.ir.blocks import find_blocks
from bevel.ir.provenance import provenance
from bevel.ir.repetition import layers
from bevel.passes.pipeline import optimize
from bevel.passes.share_blocks import ShareBlocks
from bevel.testing import check_pass
from tests import zoo
from tests.graphs import graph, proto

STREAM = """
m (float[n, 4] x) => (float[n, 4] y) {
  b1 = Gemm (x, w1, c1)  x1 = Add (x, b1)
  b2 = Gemm (x1, w2, c2)  x2 = Add (x1, b2)
  b3 = Gemm (x2, w3, c3)  x3 = Add (x2, b3)
  b4 = Gemm (x3, w4, c4)  y = Add (x3, b4)
}
"""
SHAPES = {**{f"w{n}": (4, 4) for n in range(1, 5)}, **{f"c{n}": (4,) for n in range(1, 5)}}
FEEDS = [{"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}]


def stream(apart=(0, 0.01, 1, 0.1)):
    """Four blocks, each so far from the one before it."""
    source = proto(STREAM, SHAPES)
    arrays = {each.name: onnx.numpy_helper.to_array(each) * 0.3 for each in source.graph.initializer}
    for place in range(2, 5):
        arrays[f"w{place}"] = arrays[f"w{place - 1}"] + apart[place - 1] * arrays[f"w{place}"]
    for each in source.graph.initializer:
        each.raw_data = arrays[each.name].astype(np.float32).tobytes()
    return bevel.load(source)


def operands(model):
    return [node.inputs[1].name for node in model.graph if node.op_type == "Gemm"]


@pytest.mark.parametrize(
    ("count", "used"),
    [(1, ["w1", "w1", "w3", "w4"]), (2, ["w1", "w1", "w3", "w3"]), (3, ["w1", "w1", "w1", "w1"])],
)
def test_the_nearest_blocks_share_the_weights_of_the_first(count, used):
    model = stream()
    check_pass(ShareBlocks(count=count), model, FEEDS)
    report = optimize(model, ShareBlocks(count=count), calibration=FEEDS)
    assert operands(model) == used
    assert set(model.graph.initializers) == {*used, "c1", "c2", "c3", "c4"}
    assert f"{count} of 4 layers share weights" in report.steps[0].notes[0]
    assert f"{64 * count} of 320 bytes" in report.steps[0].notes[1]
    assert report.after.macs == report.before.macs


def test_the_least_turning_block_gives_its_weights_up():
    source = proto(STREAM, SHAPES)
    for each in source.graph.initializer:
        scale = 0.01 if each.name in ("w3", "c3") else 1
        each.raw_data = (onnx.numpy_helper.to_array(each) * np.float32(scale)).tobytes()
    model = bevel.load(source)
    optimize(model, "share-blocks{count=1 by=angular}", calibration=FEEDS)
    assert operands(model) == ["w1", "w2", "w2", "w4"]


def test_blocks_share_with_the_last_of_their_kind():
    """Wide and narrow branches take turns: a layer is one of each."""
    text = """
    m (float[n, 4] x) => (float[n, 4] y) {
      b1 = MatMul (x, w1)  x1 = Add (x, b1)  h1 = MatMul (x1, u1)  d1 = MatMul (h1, v1)  x2 = Add (x1, d1)
      b2 = MatMul (x2, w2)  x3 = Add (x2, b2)  h2 = MatMul (x3, u2)  d2 = MatMul (h2, v2)  y = Add (x3, d2)
    }
    """
    shapes = {"w1": (4, 4), "w2": (4, 4), "u1": (4, 6), "u2": (4, 6), "v1": (6, 4), "v2": (6, 4)}
    by_layer, by_block = graph(text, shapes), graph(text, shapes)
    optimize(by_layer, "share-blocks{count=1}", calibration=FEEDS)
    assert set(by_layer.graph.initializers) == {"w1", "u1", "v1"}
    optimize(by_block, "share-blocks{count=1 unit=block only=u2}", calibration=FEEDS)
    assert set(by_block.graph.initializers) == {"w1", "w2", "u1", "v1"}


def test_files_keep_matrices_tied_and_vectors_apart():
    model, small = stream(), stream()
    optimize(small, "share-blocks{count=3}", calibration=FEEDS)
    sizes = []
    for each in (model, small):
        stream_ = io.BytesIO()
        bevel.save(each, stream_)
        sizes.append(len(stream_.getvalue()))
    again = bevel.load(onnx.load_from_string(stream_.getvalue()))
    assert operands(again) == ["w1"] * 4
    assert {"c1", "c2", "c3", "c4"} < set(again.graph.initializers)
    assert sizes[0] - sizes[1] > 3 * 64


@pytest.mark.parametrize("style", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["gpt", "bert", "llama", "swin", "convnext"])
def test_networks_share_their_last_layer(name, style):
    model = bevel.load(zoo.path(name, style))
    (step,) = optimize(model, "share-blocks{count=1}", calibration=[feed for feed, _ in zoo.trials(name)]).steps
    assert 0 < step.error < 1
    first, second = [layer for layer in layers(find_blocks(model).blocks) if layer.kind][:2]
    weights = [[weight.value for block in layer.blocks for weight in block.weights] for layer in (first, second)]
    assert weights[0] == weights[1]


def test_a_limit_on_the_error_is_kept():
    with pytest.raises(PromiseBroken, match="share-blocks"):
        optimize(stream(), "share-blocks{count=3}", calibration=FEEDS, max_error=0.01)


def test_the_parameters_of_a_module_are_tied():
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            x = x + self.first(x)
            return x + self.second(x)

    module = Net()
    model = bevel.load(module, torch.randn(3, 4))
    optimize(model, "share-blocks{count=1}")
    (weight,) = [value for value in model.graph.initializers.values() if len(value.shape) == 2]
    assert provenance(weight).names == ("first.weight", "second.weight")
    student = bevel.to_torch(model)
    assert student.get_parameter("first.weight") is student.get_parameter("second.weight")
    assert student.get_parameter("first.bias") is not student.get_parameter("second.bias")


def test_blocks_of_different_sizes_are_refused():
    text = """
    m (float[n, 4] x) => (float[n, 4] y) {
      b = MatMul (x, w)  s = Add (x, b)  h = MatMul (s, u)  d = MatMul (h, v)  y = Add (s, d)
    }
    """
    model = graph(text, {"w": (4, 4), "u": (4, 6), "v": (6, 4)})
    with pytest.raises(EditRefused, match="only 0 layers have one of their kind"):
        check_pass(ShareBlocks(count=1), model, FEEDS)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(EditRefused, match="only 3 layers"):
        check_pass(ShareBlocks(count=4), stream(), FEEDS)
    with pytest.raises(UsageError, match="no layer is asked for"):
        check_pass(ShareBlocks(only=("w9",)), stream(), FEEDS)
    with pytest.raises(EditRefused, match="no residual blocks"):
        optimize(bevel.load(zoo.path("vgg")), "share-blocks")
