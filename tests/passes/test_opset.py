"""What an operator of an older opset means, it means at opset 13."""

import numpy as np
import onnx
import pytest

import bevel
from bevel.errors import EditRefused
from bevel.ir.opset import raise_opset
from bevel.passes.base import Exact
from bevel.passes.verify import verify
from tests.graphs import proto

FEEDS = [{"x": np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)}]
RESIZED = "{ k = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()  y = %s (x, k) }"
NODES = {
    "Slice": (9, "{ y = Slice <starts = [1], ends = [3], axes = [2]> (x) }"),
    "Slice of the first axes": (9, "{ y = Slice <starts = [0, 1], ends = [1, 3]> (x) }"),
    "Slice by operands": (10, "{ a = Constant <value = int64[1] {1}> ()  y = Slice (x, a, a, a) }"),
    "Clip": (7, "{ y = Clip <min = 0.0, max = 0.5> (x) }"),
    "Clip from above": (9, "{ y = Clip <max = 0.5> (x) }"),
    "Clip by nothing": (9, "{ y = Clip (x) }"),
    "Pad": (9, "{ y = Pad <pads = [0, 0, 1, 2, 0, 0, 0, 1], value = 2.0> (x) }"),
    "Pad with zeros": (9, "{ y = Pad <pads = [0, 0, 1, 2, 0, 0, 0, 1]> (x) }"),
    "Pad by reflection": (9, '{ y = Pad <pads = [0, 0, 1, 2, 0, 0, 0, 1], mode = "reflect"> (x) }'),
    "Upsample": (9, RESIZED % 'Upsample <mode = "nearest">'),
    "Upsample linearly": (9, RESIZED % 'Upsample <mode = "linear">'),
    "Resize": (10, RESIZED % 'Resize <mode = "nearest">'),
    "Resize linearly": (10, RESIZED % 'Resize <mode = "linear">'),
    "Softmax": (9, "{ y = Softmax <axis = 3> (x) }"),
    "Softmax over channels": (9, "{ p = GlobalAveragePool (x)  y = Softmax (p) }"),
    "Softmax over all from the channels on": (9, "{ y = Softmax (x) }"),
    "LogSoftmax over a matrix of images": (11, "{ y = LogSoftmax <axis = 2> (x) }"),
    "Split": (9, "{ y, z = Split <axis = 3, split = [1, 3]> (x) }"),
    "ReduceSum": (9, "{ y = ReduceSum <axes = [1], keepdims = 0> (x) }"),
    "Dropout": (7, "{ y = Dropout <ratio = 0.3> (x) }"),
    "TopK": (10, "{ k = Constant <value = int64[1] {2}> ()  y, i = TopK (x, k) }"),
}


def older(version: int, text: str):
    model = proto(f"net (float[2, 3, 4, 4] x) => (float[a, b, c, d] y) {text}")
    model.opset_import[0].version, model.ir_version = version, 3
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return bevel.load(onnx.load_from_string(model.SerializeToString()))


@pytest.mark.parametrize("name", NODES)
def test_it_computes_the_same(name: str) -> None:
    model = older(*NODES[name])
    raised = model.clone()
    assert raise_opset(raised)
    assert raised.opset_imports[""] == 13
    assert verify(model, raised, FEEDS, Exact()).kept


def test_other_numbers_show() -> None:
    raised = older(9, "{ y = Clip <min = 0.0, max = 0.4> (x) }")
    raise_opset(raised)
    assert not verify(older(*NODES["Clip"]), raised, FEEDS, Exact()).kept


def test_what_means_something_else_is_refused_and_the_model_as_it_was() -> None:
    model = older(9, "{ y, m = Dropout (x) }")
    with pytest.raises(EditRefused, match="may mean something else"):
        raise_opset(model)
    assert model.opset_imports[""] == 9
