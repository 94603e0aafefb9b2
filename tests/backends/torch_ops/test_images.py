"""Operators on images beside ONNX Runtime, over what the node tests leave out: versions, padding, ranks, types."""

import numpy as np
import pytest

from bevel.errors import UnsupportedModel
from tests.backends.torch_ops.single import by_onnxruntime, by_reference, by_torch, feed_of, model_of, same

RNG = np.random.default_rng(0)
LINE, IMAGE, BLOCK = (RNG.standard_normal((2, 4, *sizes)).astype(np.float32) for sizes in ((9,), (7, 8), (5, 6, 4)))
ROIS = np.array([[0, 1, 1, 5, 6], [1, 0, 0, 2, 2], [1, 3, 2, 9, 9]], np.float32)


def filters(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def f32(*numbers):
    return np.array(numbers, np.float32)


def i64(*numbers):
    return np.array(numbers, np.int64)


STATISTICS = [f32(1, 2, 0.5, -1), f32(0, 1, 2, 3), f32(0.1, 0.2, -0.1, 0), f32(1, 2, 0.5, 1)]
BOX = {"kernel_shape": [3, 2], "strides": [2, 3]}
CASES = [
    ("Conv", [LINE, filters(3, 4, 3)], 1, {"pads": [0, 2], "dilations": [2]}),
    ("Conv", [IMAGE, filters(6, 2, 3, 2), f32(*range(6))], 11, {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [IMAGE, filters(3, 4, 3, 2)], 11, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("Conv", [IMAGE, filters(3, 4, 2, 2)], 11, {"auto_pad": "SAME_LOWER"}),
    ("Conv", [IMAGE, filters(3, 4, 2, 2)], 11, {"auto_pad": "VALID", "strides": [2, 2]}),
    ("Conv", [BLOCK, filters(4, 1, 2, 3, 2)], 11, {"group": 4, "pads": [1, 1, 0, 0, 1, 1]}),
    ("ConvTranspose", [LINE, filters(4, 3, 3)], 11, {"pads": [0, 2], "strides": [2], "output_padding": [1]}),
    ("ConvTranspose", [IMAGE, filters(4, 3, 3, 2), f32(1, 2, 3)], 11, {"pads": [2, 0, 0, 1], "strides": [2, 3]}),
    ("ConvTranspose", [IMAGE, filters(4, 3, 3, 2), f32(*range(6))], 11, {"group": 2, "dilations": [2, 1]}),
    ("ConvTranspose", [IMAGE, filters(4, 3, 3, 3)], 11, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("ConvTranspose", [IMAGE, filters(4, 3, 3, 3)], 11, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("ConvTranspose", [IMAGE, filters(4, 3, 4, 3)], 11, {"output_shape": [14, 15], "strides": [2, 2]}),
    ("ConvTranspose", [BLOCK, filters(4, 1, 2, 3, 2)], 11, {"strides": [2, 1, 2], "pads": [0, 1, 0, 1, 1, 0]}),
    ("MaxPool", [LINE], 1, {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", [IMAGE], 8, {**BOX, "pads": [1, 0, 0, 1], "outputs": (1, 7)}),
    ("MaxPool", [IMAGE], 12, {**BOX, "pads": [1, 1, 1, 1], "outputs": (1, 7), "storage_order": 1}),
    ("MaxPool", [IMAGE], 12, {**BOX, "auto_pad": "SAME_LOWER", "outputs": (1, 7)}),
    ("MaxPool", [IMAGE], 12, {**BOX, "ceil_mode": 1, "dilations": [2, 2]}),
    ("MaxPool", [IMAGE], 12, {**BOX, "ceil_mode": 1, "pads": [0, 1, 2, 0]}),
    ("MaxPool", [BLOCK], 12, {"kernel_shape": [2, 3, 2], "outputs": (1, 7), "pads": [0, 1, 0, 1, 1, 1]}),
    ("MaxPool", [(IMAGE * 50).astype(np.int8)], 12, {**BOX, "pads": [1, 0, 1, 1], "outputs": (3,)}),
    ("AveragePool", [LINE], 7, {"kernel_shape": [3], "pads": [1, 0], "count_include_pad": 1}),
    ("AveragePool", [IMAGE], 7, {**BOX, "auto_pad": "SAME_UPPER"}),
    ("AveragePool", [IMAGE], 19, {**BOX, "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1}),
    ("AveragePool", [IMAGE], 19, {**BOX, "pads": [1, 0, 2, 0], "ceil_mode": 1}),
    ("AveragePool", [IMAGE], 19, {**BOX, "dilations": [2, 3], "count_include_pad": 1, "pads": [1, 1, 0, 1]}),
    ("AveragePool", [BLOCK], 11, {"kernel_shape": [2, 3, 2], "pads": [0, 1, 0, 1, 1, 1]}),
    ("LpPool", [IMAGE], 2, {**BOX, "p": 3, "auto_pad": "SAME_LOWER"}),
    ("LpPool", [IMAGE], 18, {**BOX, "p": 1, "pads": [1, 1, 1, 0]}),
    ("GlobalLpPool", [BLOCK], 2, {"p": 3}),
    ("GlobalAveragePool", [LINE], 1, {}),
    ("GlobalMaxPool", [BLOCK], 1, {}),
    ("MaxRoiPool", [IMAGE, ROIS], 1, {"pooled_shape": [2, 3], "spatial_scale": 0.9}),
    ("RoiAlign", [IMAGE, ROIS[:, 1:], ROIS[:, 0].astype(np.int64)], 10, {"output_height": 2, "output_width": 3}),
    ("RoiAlign", [IMAGE, ROIS[:, 1:], i64(0, 1, 1)], 16, {"output_height": 3, "sampling_ratio": 2}),
    ("RoiAlign", [IMAGE, ROIS[:, 1:] * 3, i64(0, 1, 1)], 16, {"output_width": 2, "spatial_scale": 0.5}),
    ("BatchNormalization", [IMAGE, *STATISTICS], 7, {"momentum": 0.5}),
    ("BatchNormalization", [IMAGE, *STATISTICS], 9, {"epsilon": 0.1}),
    ("BatchNormalization", [IMAGE[:, :, 0, 0], *STATISTICS], 15, {}),
    ("InstanceNormalization", [LINE, *STATISTICS[:2]], 6, {"epsilon": 0.1}),
    ("GroupNormalization", [BLOCK, f32(1, 2), f32(3, 4)], 18, {"num_groups": 2}),
    ("GroupNormalization", [LINE, *STATISTICS[:2]], 21, {"num_groups": 2}),
    ("LayerNormalization", [IMAGE, filters(7, 8), filters(8)], 17, {"axis": 2, "outputs": (1, 1, 1)}),
    ("LayerNormalization", [IMAGE, filters(8)], 17, {}),
    ("LRN", [IMAGE], 1, {"size": 3, "alpha": 0.5, "bias": 2.0}),
    ("LpNormalization", [IMAGE], 1, {"axis": 1, "p": 1}),
    ("MeanVarianceNormalization", [IMAGE], 9, {"axes": [1, 2]}),
    ("Upsample", [IMAGE], 7, {"scales": [1.0, 1.0, 2.0, 3.0]}),
    ("Upsample", [IMAGE], 7, {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}),
    ("Upsample", [IMAGE, f32(1, 1, 1.3, 2.6)], 9, {"constants": (1,)}),
    ("Resize", [IMAGE, f32(1, 1, 0.6, 0.4)], 10, {"constants": (1,)}),
    ("Resize", [IMAGE, f32(1, 1, 2, 0.7)], 10, {"constants": (1,), "mode": "linear"}),
    ("Resize", [IMAGE, f32(), f32(1, 1, 0.7, 0.7)], 11, {"constants": (1, 2), "mode": "linear"}),
    ("Resize", [IMAGE, f32(), f32(), i64(2, 4, 9, 5)], 11, {"constants": (1, 2, 3), "mode": "cubic"}),
    ("Resize", [LINE, None, f32(1, 1, 3)], 13, {"constants": (2,), "mode": "linear"}),
    ("Resize", [(IMAGE * 40).astype(np.int8), None, f32(1, 1, 3, 2)], 13, {"constants": (2,), "outputs": (3,)}),
    ("GridSample", [IMAGE, RNG.uniform(-1.2, 1.2, (2, 3, 3, 2)).astype(np.float32)], 16, {"mode": "bicubic"}),
    ("AffineGrid", [filters(2, 2, 3), i64(2, 1, 3, 4)], 20, {"constants": (1,), "align_corners": 1}),
    ("DFT", [IMAGE[..., :2].copy(), i64(5).reshape(())], 17, {"constants": (1,), "axis": 2}),
    ("DFT", [IMAGE[..., :1], i64(10).reshape(())], 17, {"constants": (1,), "axis": 1, "onesided": 1}),
    ("DFT", [IMAGE[..., :2].copy()], 17, {"axis": 2, "inverse": 1}),
]  # fmt: skip
# A few dozen products of numbers of size one, in another order.
RTOL = 1e-4


@pytest.mark.parametrize(("op_type", "inputs", "opset", "how"), CASES, ids=[case[0] for case in CASES])
def test_images_are_what_onnx_runtime_makes_of_them(op_type, inputs, opset, how):
    model = model_of(op_type, inputs, opset, **how)
    feed = feed_of(model, inputs)
    assert same(by_torch(model, feed), by_onnxruntime(model, feed), RTOL)


def test_the_comparison_sees_another_padding():
    how = {"kernel_shape": [2, 2]}
    upper, lower = (model_of("MaxPool", [IMAGE], 12, **how, auto_pad=f"SAME_{side}") for side in ("UPPER", "LOWER"))
    assert not same(by_torch(upper, {"x0": IMAGE}), by_onnxruntime(lower, {"x0": IMAGE}), RTOL)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_local_response_is_that_of_the_reference(size):
    feed = {"x0": np.tile(IMAGE, (2, 1, 1, 1))}  # the reference takes as many channels as there are images
    model = model_of("LRN", list(feed.values()), 13, size=size, alpha=0.5)
    assert same(by_torch(model, feed), by_reference(model, feed), RTOL)


@pytest.mark.parametrize(
    ("op_type", "inputs", "opset", "how", "words"),
    [
        ("Conv", [BLOCK[..., None], filters(4, 4, 1, 1, 1, 1)], 11, {}, "4 spatial axes"),
        ("BatchNormalization", [IMAGE, *STATISTICS], 9, {"outputs": (1,) * 5}, "5 outputs"),
        ("BatchNormalization", [IMAGE, *STATISTICS], 6, {}, "is_test=0"),
        ("GridSample", [BLOCK, filters(2, 3, 3, 3, 3)], 20, {"mode": "cubic"}, "cubic"),
        ("Resize", [IMAGE, None, f32(1, 1, 2, 2)], 18, {"constants": (2,), "antialias": 1}, "antialias"),
        ("ImageDecoder", [np.zeros(4, np.uint8)], 20, {"outputs": (2,)}, "ImageDecoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_torch_has_no_kernel_for_is_refused(op_type, inputs, opset, how, words):
    model = model_of(op_type, inputs, opset, **how)
    with pytest.raises(UnsupportedModel, match=words):
        by_torch(model, feed_of(model, inputs))
