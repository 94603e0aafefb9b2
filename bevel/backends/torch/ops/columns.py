"""Convolutions over columns of sampled patches, and the way back from columns to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.windows import Axis, axes_of
from bevel.backends.torch.table import Ints, lower


@lower("DeformConv")
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    offset_group: int = 1,
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Slide filters whose every entry is taken from a place of its own, `offset` from where it would be."""
    kernel = list(kernel_shape or w.shape[2:])
    axes = axes_of(x.shape[2:], kernel, strides, dilations, pads, "NOTSET")
    wide = torch.promote_types(x.dtype, torch.float32)
    rank, entries, out = len(axes), math.prod(kernel), list(offset.shape[2:])
    shifts = offset.to(wide).reshape(-1, entries, rank, *out)
    corners = [_corners(shifts[:, :, at] + _places(axes, out, at, x.device), axis.size) for at, axis in enumerate(axes)]
    pixels, weights = corners[0]
    for axis, (more, shares) in zip(axes[1:], corners[1:], strict=True):
        pixels = (pixels.unsqueeze(-1) * axis.size + more.unsqueeze(-2)).flatten(-2)
        weights = (weights.unsqueeze(-1) * shares.unsqueeze(-2)).flatten(-2)
    if mask is not None:
        weights = weights * mask.to(wide).reshape(-1, entries, *out, 1)
    # Images are cut in groups of channels that share their offsets; every pixel of one is a row of the table.
    table = x.to(wide).reshape(pixels.shape[0], x.shape[1] // offset_group, -1).transpose(1, 2)
    starts = torch.arange(pixels.shape[0], device=x.device) * table.shape[1]
    pixels = (pixels + starts.view(-1, *[1] * (rank + 2))).flatten(0, -2)
    columns = F.embedding_bag(pixels, table.flatten(0, 1), mode="sum", per_sample_weights=weights.flatten(0, -2))
    columns = columns.view(x.shape[0], offset_group, entries, math.prod(out), -1).permute(0, 1, 4, 2, 3)
    columns = columns.reshape(x.shape[0], group, -1, math.prod(out))
    filters = w.to(wide).reshape(group, w.shape[0] // group, -1)
    y = torch.matmul(filters, columns).reshape(x.shape[0], w.shape[0], *out).to(x.dtype)
    return y if b is None else y + b.view(-1, *[1] * rank)


def _places(axes: Sequence[Axis], out: Sequence[int], at: int, device: torch.device) -> Tensor:
    """Return where along an axis the entries of the kernel (in one first axis) are for every output."""
    axis, rank = axes[at], len(axes)
    tap = torch.arange(axis.kernel, device=device) * axis.dilation - axis.begin
    tap = tap.view([-1 if place == at else 1 for place in range(rank)]).expand([it.kernel for it in axes]).reshape(-1)
    step = torch.arange(out[at], device=device) * axis.stride
    return tap.view(-1, *[1] * rank) + step.view([-1 if place == at else 1 for place in range(rank)])


def _corners(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the two pixels around positions along an axis, and their weights, which are zero outside."""
    low = at.detach().floor()
    share = at - low
    pixels = torch.stack([low, low + 1], -1)
    weights = torch.stack([1 - share, share], -1) * ((pixels >= 0) & (pixels < size))
    return pixels.clamp(min=0).clamp(max=size - 1).to(torch.int64), weights


@lower("Col2Im")
def columns_to_image(
    columns: Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Add blocks of an image up where they overlap."""
    axes = axes_of(image_shape, block_shape, strides, dilations, pads, "NOTSET")
    if len(axes) == 2 and columns.is_floating_point() and all(axis.begin == axis.end for axis in axes):
        kernel, steps, spans, begins = zip(
            *((axis.kernel, axis.stride, axis.dilation, axis.begin) for axis in axes), strict=True
        )
        return F.fold(columns, tuple(image_shape), kernel, spans, begins, steps)
    padded = [axis.size + axis.begin + axis.end for axis in axes]
    places = torch.zeros([], dtype=torch.int64, device=columns.device)
    for axis, size in zip(axes, padded, strict=True):
        tap = torch.arange(axis.kernel, device=columns.device) * axis.dilation
        step = torch.arange(axis.count(False), device=columns.device) * axis.stride
        # kernel entries so far, blocks so far -> the same with one axis more
        places = places.view(*places.shape[:1], 1, -1, 1) if places.dim() else places.view(1, 1, 1, 1)
        places = (places * size + tap.view(1, -1, 1, 1) + step.view(1, 1, 1, -1)).flatten(0, 1).flatten(1, 2)
    wide = columns.dtype if columns.is_floating_point() or columns.is_complex() else torch.int64
    values = columns.to(wide).view(columns.shape[0], -1, places.numel())
    image = values.new_zeros(*values.shape[:2], math.prod(padded)).index_add(2, places.flatten(), values)
    image = image.view(*values.shape[:2], *padded)
    for at, axis in enumerate(axes):
        image = image.narrow(2 + at, axis.begin, axis.size)
    return image.to(columns.dtype)
