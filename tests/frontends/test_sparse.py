"""Sparse initializers and constants are read as the dense tensors that they stand for, or refused by name."""

import numpy as np
import onnx
import pytest

from bevel.backends.onnxruntime import Session
from bevel.errors import InvalidModel, UnsupportedModel
from bevel.frontends.onnx import load
from tests.graphs import MLP, MLP_WEIGHTS, proto

FLAT = np.array([0, 5, 23])
VALUES = np.array([1.5, -2, 3], np.float32)
DENSE = np.zeros(24, np.float32)
DENSE[FLAT] = VALUES
X = {"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)}


def sparse(values=VALUES, places=FLAT, shape=(8, 3), name="w2"):
    tensors = [onnx.numpy_helper.from_array(np.asarray(values), name), onnx.numpy_helper.from_array(np.asarray(places))]
    return onnx.helper.make_sparse_tensor(*tensors, list(shape))


def with_weight(tensor):
    model = proto(MLP, {name: shape for name, shape in MLP_WEIGHTS.items() if name != "w2"})
    model.graph.sparse_initializer.append(tensor)
    return model


def weight_of(model):
    return load(model).graph.initializers["w2"].const_value.numpy()


@pytest.mark.parametrize("places", [FLAT, np.stack([FLAT // 3, FLAT % 3], 1)], ids=["flat", "by axis"])
def test_a_sparse_initializer_is_dense(places):
    model = with_weight(sparse(places=places))
    assert np.array_equal(weight_of(model), DENSE.reshape(8, 3))
    assert len(model.graph.sparse_initializer) == 1


def test_without_values_it_is_zero():
    assert not weight_of(with_weight(sparse(VALUES[:0], FLAT[:0]))).any()


def test_a_sparse_constant_is_dense_inside_graphs_as_well():
    branch = "{name} () => (float[8, 3] {name}w) {{ {name}w = Constant () }}"
    then, other = branch.format(name="t"), branch.format(name="e")
    text = f"""m (float[n, 6] x, bool c) => (float[n, 3] y) {{
      h = MatMul (x, w1)  w = If (c) <then_branch = {then}, else_branch = {other}>  y = MatMul (h, w)
    }}"""
    model = proto(text, {"w1": (6, 8)})
    for attribute in model.graph.node[1].attribute:
        constant = attribute.g.node[0]
        constant.attribute.append(onnx.helper.make_attribute("sparse_value", sparse()))
    h = X["x"] @ onnx.numpy_helper.to_array(model.graph.initializer[0])
    with Session(load(model)) as session:
        found = session.run({**X, "c": np.array(True)})["y"]
    np.testing.assert_allclose(found, h @ DENSE.reshape(8, 3), rtol=1e-5)


@pytest.mark.parametrize(
    ("tensor", "error", "what"),
    [
        (sparse(places=[0, 5, 24]), InvalidModel, "outside"),
        (sparse(places=[[0, 0], [1, 2], [7, 3]]), InvalidModel, "outside"),
        (sparse(places=[0, 5]), InvalidModel, r"values of shape \[3\] at places of shape \[2\]"),
        (sparse(places=np.float32([0, 5, 7])), InvalidModel, "places"),
        (sparse(np.array(["a", "b", "c"], object)), UnsupportedModel, "strings"),
        (sparse(shape=(2**20, 2**20)), UnsupportedModel, "too large"),
        (onnx.SparseTensorProto(), InvalidModel, "element type"),
    ],
    ids=["place", "place by axis", "count", "type", "strings", "size", "empty"],
)
def test_what_is_no_sparse_tensor_or_too_large_is_refused(tensor, error, what):
    with pytest.raises(error, match=what) as caught:
        load(with_weight(tensor))
    assert caught.value.where and caught.value.remedy
