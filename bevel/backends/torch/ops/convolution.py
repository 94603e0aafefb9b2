"""Convolutions and their transposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.windows import Axis, axes_of, is_balanced, pad_axes, spatial_rank
from bevel.backends.torch.table import lower

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSES = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@lower("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Slide filters over one to three spatial axes."""
    rank = spatial_rank(x, "Conv")
    axes = axes_of(x.shape[2:], kernel_shape or w.shape[2:], strides, dilations, pads, auto_pad)
    padding = [axis.begin for axis in axes]
    if not is_balanced(axes):
        x, padding = pad_axes(x, [(axis.begin, axis.end) for axis in axes]), [0] * rank
    return _CONVOLUTIONS[rank](x, w, b, list(strides) or 1, padding, list(dilations) or 1, group)


@lower("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Spread entries by filters over one to three spatial axes: the transpose of a convolution."""
    rank = spatial_rank(x, "ConvTranspose")
    axes = axes_of(x.shape[2:], kernel_shape or w.shape[2:], strides, dilations, pads, "NOTSET")
    extra = list(output_padding) or [0] * rank
    if output_shape:
        sizes = output_shape[-rank:]
        rows = zip(axes, extra, sizes, strict=True)
        totals = [axis.stride * (axis.size - 1) + more + axis.span - size for axis, more, size in rows]
        axes = [_split(axis, total, auto_pad) for axis, total in zip(axes, totals, strict=True)]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # An output of a stride's size per entry drops what the filters reach over the last stride.
        totals = [more + axis.span - axis.stride for axis, more in zip(axes, extra, strict=True)]
        axes = [_split(axis, total, auto_pad) for axis, total in zip(axes, totals, strict=True)]
    elif auto_pad == "VALID":
        axes = [axis._replace(begin=0, end=0) for axis in axes]
    return _transpose(x, w, b, axes, extra, group)


def _split(axis: Axis, total: int, auto_pad: str) -> Axis:
    """Crop `total` positions in two halves; what is missing of an output beyond the last filter is at its end."""
    if total < 0:
        return axis._replace(begin=0, end=total)
    half = total // 2
    begin, end = (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)
    return axis._replace(begin=begin, end=end)


def _transpose(
    x: Tensor, w: Tensor, b: Tensor | None, axes: Sequence[Axis], extra: Sequence[int], group: int
) -> Tensor:
    """Crop by torch's own padding what both ends have in common, and the rest afterwards."""
    rank, strides, dilations = len(axes), [axis.stride for axis in axes], [axis.dilation for axis in axes]
    common = [max(0, min(axis.begin, axis.end)) for axis in axes]
    # What is left to crop at the begin and at the end; negative: to add.
    rows = list(zip(axes, extra, common, strict=True))
    crops = [(axis.begin - both, axis.end - both - more) for axis, more, both in rows]
    added = [max(0, -end) for _, end in crops]
    fits = all(more < max(axis.stride, axis.dilation) for axis, more in zip(axes, added, strict=True))
    function = _TRANSPOSES[rank]
    if fits:
        rest = [(-begin, -max(0, end)) for begin, end in crops]
        return pad_axes(function(x, w, b, strides, common, added, group, dilations), rest)
    y = pad_axes(function(x, w, None, strides, common, 0, group, dilations), [(-begin, -end) for begin, end in crops])
    return y if b is None else y + b.view(-1, *[1] * rank)


def _refuse_activation(attributes: Mapping[str, Any]) -> str:
    name = attributes.get("activation", "none")
    return "" if name in ("none", "silu", "swish") else f"activation {name!r}"


@lower("CausalConvWithState", refuses=_refuse_activation)
def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Convolve every channel with the positions before it, and return the last of them for the next call."""
    reach = weight.shape[2] - 1
    x = F.pad(x, [reach, 0]) if past is None else torch.cat([past, x], 2)
    y = F.conv1d(x, weight, bias, groups=weight.shape[0])
    return (y if activation == "none" else F.silu(y)), x[:, :, x.shape[2] - reach :]
