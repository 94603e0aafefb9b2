"""Operators as they were in earlier operator sets, beside ONNX Runtime."""

import numpy as np
import pytest

from tests.backends.torch_ops.single import by_onnxruntime, by_torch, feed_of, model_of, same

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
M = RNG.standard_normal((4, 6)).astype(np.float32)


def i64(*numbers):
    return np.array(numbers, np.int64)


CASES = [
    ("Softmax", [X], 11, {}),
    ("Softmax", [X], 11, {"axis": 2}),
    ("Softmax", [X], 11, {"axis": -1}),
    ("Softmax", [X], 11, {"axis": 0}),
    ("LogSoftmax", [X], 11, {}),
    ("Hardmax", [X], 11, {"axis": 2}),
    ("Slice", [X], 9, {"starts": [1, -3], "ends": [3, 2**31], "axes": [1, 3]}),
    ("Slice", [X], 9, {"starts": [0, 1], "ends": [1, -1]}),
    ("Slice", [X, i64(-1, 3), i64(-(2**62), 0), i64(3, 2), i64(-2, -1)], 13, {"constants": (1, 2, 3, 4)}),
    ("Slice", [X, i64(99), i64(-4), i64(3), i64(-1)], 13, {"constants": (1, 2, 3, 4)}),
    ("Slice", [X, i64(3), i64(1), i64(-1), i64(-1)], 13, {}),
    ("Split", [X], 11, {"axis": 2, "outputs": (1, 1)}),
    ("Split", [X], 11, {"axis": 3, "split": [1, 4], "outputs": (1, 1)}),
    ("Split", [X], 18, {"axis": 3, "num_outputs": 3, "outputs": (1, 1, 1)}),
    ("Split", [X, i64(0, 5)], 18, {"axis": -1, "outputs": (1, 1), "constants": (1,)}),
    ("Squeeze", [X[:, :1]], 11, {"axes": [1]}),
    ("Squeeze", [X[:1, :1]], 11, {}),
    ("Squeeze", [X[:, :1], i64(-3)], 13, {"constants": (1,)}),
    ("Unsqueeze", [M], 11, {"axes": [0, 3]}),
    ("Unsqueeze", [M, i64(-1, 0)], 13, {"constants": (1,)}),
    ("ReduceSum", [X], 11, {"axes": [1, -1], "keepdims": 0}),
    ("ReduceSum", [X, i64(1, -1)], 13, {"keepdims": 0, "constants": (1,)}),
    ("ReduceSum", [X, i64()], 13, {"noop_with_empty_axes": 1, "constants": (1,)}),
    ("ReduceMean", [X], 17, {"axes": [2]}),
    ("ReduceMean", [X, i64(2)], 18, {"constants": (1,)}),
    ("ReduceMax", [X], 12, {"keepdims": 0}),
    ("ReduceL2", [X], 12, {"axes": [0, 1]}),
    ("ReduceLogSumExp", [X], 12, {"axes": [3]}),
    ("ReduceProd", [X], 12, {"axes": [1, 3], "keepdims": 0}),
    ("Clip", [X], 10, {"min": -0.5, "max": 0.25}),
    ("Clip", [X], 10, {"max": 0.25}),
    ("Clip", [X], 10, {}),
    ("Clip", [X, None, np.float32(0.5)], 13, {"constants": (2,)}),
    ("Clip", [X, np.float32(0.5), np.float32(-0.5)], 13, {}),
    ("Pad", [X], 10, {"pads": [0, 1, 0, 2, 1, 0, 0, 1], "value": 0.5}),
    ("Pad", [X], 10, {"pads": [0, 0, 2, 2, 0, 0, 1, 3], "mode": "reflect"}),
    ("Pad", [X], 10, {"pads": [0, 0, 2, 2, 0, 0, 1, 3], "mode": "edge"}),
    ("Pad", [X, i64(0, -1, 1, 0, 1, 0, 0, -2), np.float32(7)], 13, {"constants": (1, 2)}),
    ("Pad", [X, i64(2, 1), None, i64(3)], 19, {"mode": "wrap", "constants": (1, 3)}),
    ("TopK", [X], 9, {"k": 2, "axis": 1, "outputs": (1, 7)}),
    ("TopK", [X, i64(3)], 10, {"outputs": (1, 7), "constants": (1,)}),
    ("TopK", [X, i64(3)], 11, {"largest": 0, "axis": 2, "outputs": (1, 7)}),
    ("STFT", [M, np.int64(1), None, np.int64(4)], 17, {"constants": (1, 3)}),  # reals along no axis of their own
    ("STFT", [M, np.int64(2), M[0, :4]], 17, {"onesided": 0, "constants": (1,)}),
    ("Dropout", [X], 7, {"ratio": 0.3}),
    ("Dropout", [X, np.float32(0.3)], 12, {"outputs": (1, 9), "constants": (1,)}),
    ("Gemm", [M, M.T.copy(), np.ones(4, np.float32)], 7, {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", [M, M, np.ones((4, 1), np.float32)], 11, {"transB": 1}),
    ("Gemm", [M, M], 13, {"transA": 1}),
    ("Gemm", [M, M.T.copy(), np.ones((1, 4), np.float32)], 13, {}),
    ("Gemm", [M, M.T.copy(), np.float32(3)], 13, {}),
    ("Scatter", [M, np.array([[1, -1, 0]]), np.ones((1, 3), np.float32)], 10, {"axis": 1}),
    ("ScatterElements", [M, np.array([[1, 1, 0]]), np.ones((1, 3), np.float32)], 18, {"axis": 1, "reduction": "max"}),
    ("ScatterND", [M, np.array([[1], [1]]), np.ones((2, 6), np.float32)], 18, {"reduction": "add"}),
    ("ScatterND", [M, np.array([[1], [-1]]), np.ones((2, 6), np.float32)], 18, {"reduction": "mul"}),
    ("GatherND", [X, np.array([[[1, -1]], [[0, 2]]])], 13, {"batch_dims": 1}),
    ("GatherND", [X, np.array([[[2], [1], [0]]] * 2)], 13, {"batch_dims": 2}),
    ("Gather", [X, np.int64(-1)], 13, {"axis": -2}),
    ("ArgMax", [X.round()], 11, {"axis": 3, "outputs": (7,)}),
    ("ArgMin", [X.round()], 12, {"axis": 3, "select_last_index": 1, "keepdims": 0, "outputs": (7,)}),
    ("PRelu", [X, np.float32([[[0.1]], [[0.2]], [[0.3]]])], 9, {}),
    ("PRelu", [X, np.float32([0.1])], 7, {}),
    ("DepthToSpace", [np.tile(X, (1, 4, 1, 1))], 10, {"blocksize": 2}),
    ("DepthToSpace", [np.tile(X, (1, 4, 1, 1))], 11, {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [X[..., :4]], 12, {"blocksize": 2}),
    ("Tile", [M, i64(2, 3)], 9, {"constants": (1,)}),
    ("Expand", [X[:, :1], i64(3, 1, 1)], 12, {"constants": (1,)}),
    ("Reshape", [X, i64(0, -1, 4)], 12, {"constants": (1,)}),
    ("Reshape", [X[:0], i64(0, 7)], 14, {"allowzero": 1, "constants": (1,)}),
    ("Flatten", [X], 9, {"axis": 0}),
    ("Flatten", [X], 11, {"axis": -1}),
    ("CumSum", [X, np.int64(2)], 11, {"exclusive": 1, "reverse": 1, "constants": (1,)}),
    ("Pow", [X, np.int64(3)], 13, {"constants": (1,)}),
    ("Mod", [X, X[:, :1]], 13, {"fmod": 1}),
    ("OneHot", [np.array([[0, -2], [5, 1]]), i64(4), np.float32([-1, 2])], 11, {"axis": 1, "constants": (1,)}),
    ("EyeLike", [M], 9, {"k": -1}),
    ("Trilu", [X, np.int64(-1)], 14, {"upper": 0}),
    ("ReverseSequence", [M, i64(1, 2, 4, 3, 0, 2)], 10, {}),
    ("ReverseSequence", [X, i64(2, 3)], 10, {"batch_axis": 0, "time_axis": 1}),
    ("Compress", [X, np.array([True, False, True])], 11, {"axis": 1}),
    ("Compress", [X, np.array([True, False, True])], 11, {}),
    ("Einsum", [X, M], 12, {"equation": "...kj, k l -> ...jl"}),
    ("Einsum", [X[0, 0, :, :4]], 12, {"equation": "ii->i"}),
    ("Selu", [X], 6, {}),
    ("Shrink", [X], 9, {"lambd": 0.4, "bias": 0.1}),
    (
        "IsInf",
        [np.where(X > 1, np.inf, np.where(X < -1, -np.inf, X)).astype(np.float32)],
        10,
        {"detect_negative": 0, "outputs": (9,)},
    ),
    ("MatMul", [M[0], M.T.copy()], 13, {}),
    ("Det", [X[..., :4]], 11, {}),
    (
        "BitShift",
        [np.array([1, 200], np.uint8), np.array([3, 2], np.uint8)],
        11,
        {"direction": "LEFT", "outputs": (2,)},
    ),
]


@pytest.mark.parametrize(("op_type", "inputs", "opset", "how"), CASES, ids=[case[0] for case in CASES])
def test_versions_compute_what_onnx_runtime_computes(op_type, inputs, opset, how):
    inputs = [None if x is None else np.asarray(x) for x in inputs]
    model = model_of(op_type, inputs, opset, **how)
    feed = feed_of(model, inputs)
    assert same(by_torch(model, feed), by_onnxruntime(model, feed))


def test_the_comparison_sees_another_version():
    feed = {"x0": X}
    flat, along = (model_of("Softmax", [X], opset, axis=1) for opset in (11, 13))
    assert not same(by_torch(flat, feed), by_onnxruntime(along, feed))
