"""Operators on images under `torch.export` with symbolic sizes, and their gradients."""

import pytest
import torch
from torch import nn

from bevel.backends.torch.ops import columns, convolution, normalization, pooling, regions, resize, sampling, signal

CPU = torch.device("cpu")
W = torch.linspace(-1, 1, 4 * 2 * 3 * 2).view(4, 2, 3, 2)
ROIS = torch.tensor([[0.5, 1.0, 4.2, 5.1], [-1.0, 0.2, 2.0, 3.3]])
BATCH = torch.tensor([0, 1])


def flow(x):
    theta = torch.tensor([[[0.8, 0.1, 0.1], [-0.2, 0.9, 0.0]]], dtype=x.dtype).expand(x.shape[0], 2, 3)
    return sampling.affine_grid(theta, [*x.shape[:2], 4, x.shape[2]])


def offsets(x, kernel):
    height, width = x.shape[2] - kernel + 1, x.shape[3] - kernel + 1
    return x.new_full((x.shape[0], 2 * kernel * kernel, height, width), 0.3)


# On (n, 2, height, width) images.
CASES = {
    "conv uneven": lambda x: convolution.conv(x, W.to(x), pads=[0, 1, 2, 1], strides=[2, 1]),
    "conv same": lambda x: convolution.conv(x, W.to(x), auto_pad="SAME_UPPER", strides=[2, 2], dilations=[1, 2]),
    "conv same, stride 1": lambda x: convolution.conv(x, W.to(x), auto_pad="SAME_LOWER"),
    "conv transpose": lambda x: convolution.conv_transpose(
        x, W.to(x)[:2], pads=[0, 1, 2, 0], strides=[2, 3], output_padding=[1, 1]
    ),
    "conv transpose same": lambda x: convolution.conv_transpose(x, W.to(x)[:2], auto_pad="SAME_UPPER", strides=[2, 2]),
    "max pool": lambda x: pooling.max_pool(x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])[0],
    "max pool same": lambda x: pooling.max_pool(x, kernel_shape=[3, 2], auto_pad="SAME_LOWER", strides=[2, 2])[0],
    "max pool ceil": lambda x: pooling.max_pool(
        x, kernel_shape=[3, 2], pads=[0, 0, 2, 1], strides=[2, 3], ceil_mode=1
    )[0],
    "average pool": lambda x: pooling.average_pool(x, kernel_shape=[2, 2], strides=[2, 2]),
    "average pool ceil": lambda x: pooling.average_pool(
        x, kernel_shape=[3, 2], pads=[1, 0, 2, 1], strides=[2, 3], ceil_mode=1, dilations=[1, 2]
    ),
    "average pool all": lambda x: pooling.average_pool(
        x, kernel_shape=[3, 2], pads=[1, 0, 0, 1], ceil_mode=1, strides=[2, 2], count_include_pad=1
    ),
    "lp pool": lambda x: pooling.lp_pool(x, kernel_shape=[2, 3], auto_pad="SAME_UPPER", strides=[2, 2], p=3),
    "unpool": lambda x: pooling.max_unpool(
        *pooling.max_pool(x, kernel_shape=[1, 1], strides=[1, 1], outputs=2), kernel_shape=[1, 1]
    ),
    "resize by 2": lambda x: resize.resize(x, None, [1.0, 1.0, 2.0, 2.0], coordinate_transformation_mode="asymmetric"),
    "resize by 1.5": lambda x: resize.resize(x, None, [1.0, 1.0, 1.5, 0.7], mode="linear"),
    "resize by 2, linear": lambda x: resize.resize(x, None, [1.0, 1.0, 2.0, 2.0], mode="linear"),
    "resize cubic": lambda x: resize.resize(x, None, [1.0, 1.0, 0.6, 3.0], mode="cubic", exclude_outside=1),
    "resize pytorch half pixel": lambda x: resize.resize(
        x, None, [1.0, 1.0, 0.5, 2.0], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "resize corners": lambda x: resize.resize(
        x, None, [1.0, 1.0, 1.3, 2.0], mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "resize smooth": lambda x: resize.resize(x, None, [1.0, 1.0, 0.4, 0.7], mode="linear", antialias=1),
    "resize to sizes": lambda x: resize.resize(
        x, None, None, [x.shape[0], x.shape[1], 8, x.shape[3] * 3], mode="cubic"
    ),
    "resize crop": lambda x: resize.resize(
        x,
        torch.tensor([0.1, 0.2, 0.8, 1.2]),
        None,
        [4, 5],
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
    ),
    "grid sample": lambda x: sampling.grid_sample(x, flow(x), mode="cubic", padding_mode="reflection"),
    "roi align": lambda x: regions.roi_align(
        x, ROIS.to(x), BATCH, output_height=2, output_width=3, sampling_ratio=2
    ),
    "roi align max": lambda x: regions.roi_align(x, ROIS.to(x), BATCH, output_height=2, sampling_ratio=1, mode="max"),
    "max roi pool": lambda x: regions.max_roi_pool(
        x, torch.cat([BATCH.view(-1, 1).to(x), ROIS.to(x)], 1), pooled_shape=[2, 2]
    ),
    "deform conv": lambda x: columns.deform_conv(x, W.to(x)[..., :1].repeat(1, 1, 1, 3), offsets(x, 3)),
    "columns": lambda x: columns.columns_to_image(
        x.flatten(2)[:, :, :20].repeat(1, 2, 1), [6, 5], [2, 2], pads=[0, 0, 0, 0]
    ),
    "batch": lambda x: normalization.batch_normalization(
        x, *torch.tensor([[1.0, 2], [3, 4], [0, 1], [2, 1]], dtype=x.dtype).unbind(), training_mode=1, outputs=3
    )[0],
    "instance": lambda x: normalization.instance_normalization(x, W[0, :, 0, 0].to(x), W[1, :, 0, 0].to(x)),
    "local response": lambda x: normalization.local_response_normalization(x, size=2),
    "lp": lambda x: normalization.lp_normalization(x, axis=1, p=2),
    "mean and variance": lambda x: normalization.mean_variance_normalization(x),
    "layer": lambda x: normalization.layer_normalization(x[..., :2], W[0, 0, 0].to(x), axis=-1, outputs=3)[0],
    "rms": lambda x: normalization.rms_normalization(x[..., :2], W[0, 0, 0].to(x)),
    "dft": lambda x: signal.dft(x.unsqueeze(-1), None, -2, onesided=1),
    "stft": lambda x: signal.stft(x[0, 0].unsqueeze(-1), 2, signal.hann_window(4, device=CPU).to(x)),
}  # fmt: skip


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("case", CASES)
def test_sizes_stay_symbolic(case):
    torch.manual_seed(0)
    module = Calls(CASES[case])
    sizes = {axis: torch.export.Dim(name, min=6, max=64) for axis, name in ((2, "height"), (3, "width"))}
    program = torch.export.export(
        module, (torch.randn(3, 2, 9, 10),), dynamic_shapes=({0: torch.export.Dim("n"), **sizes},)
    )
    for other in (torch.randn(5, 2, 12, 7), torch.randn(2, 2, 7, 13)):
        torch.testing.assert_close(program.module()(other), module(other))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case):
    torch.manual_seed(1)
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CASES[case], (x,))


def test_chosen_boxes_are_an_operator_of_their_own_for_export():
    class Chooses(nn.Module):
        def forward(self, boxes, scores):
            return regions.non_max_suppression(boxes, scores, torch.tensor([3]), torch.tensor([0.5]))

    torch.manual_seed(2)
    boxes, scores = torch.rand(1, 9, 4), torch.rand(1, 2, 9)
    count = torch.export.Dim("count", min=4)
    program = torch.export.export(Chooses(), (boxes, scores), dynamic_shapes=({1: count}, {2: count}))
    boxes, scores = torch.rand(1, 30, 4), torch.rand(1, 2, 30)
    wanted = Chooses()(boxes, scores)
    assert 2 <= len(wanted) <= 6
    torch.testing.assert_close(program.module()(boxes, scores), wanted)
