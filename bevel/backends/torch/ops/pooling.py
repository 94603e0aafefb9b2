"""Poolings over windows and over whole channels, and the inverse of one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.windows import Axis, axes_of, is_balanced, pad_axes, spatial_rank, unfold
from bevel.backends.torch.table import Ints, lower

_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@lower("MaxPool")
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    storage_order: int = 0,
    strides: Sequence[int] = (),
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Return the largest entry of every window, and where in the whole tensor it is."""
    spatial_rank(x, "MaxPool")
    axes = axes_of(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if x.is_floating_point():
        values, places = _maxima(x, axes, bool(ceil_mode), outputs > 1)
    else:
        # 8-bit integers, which float32 holds exactly.
        values, places = _maxima(x.to(torch.float32), axes, bool(ceil_mode), outputs > 1)
        values = values.to(x.dtype)
    return (values,) if places is None else (values, _in_whole(places, x, storage_order))


def _maxima(x: Tensor, axes: Sequence[Axis], ceil: bool, places: bool) -> tuple[Tensor, Tensor | None]:
    """Pool with torch's kernel; places count the entries of a channel before it is padded."""
    begins = [axis.begin for axis in axes]
    even = _fit_kernel(axes)
    if not even:
        x, ceil = pad_axes(x, [(axis.begin, axis.overhang(ceil)) for axis in axes], -torch.inf), False
    kernel, strides, dilations = zip(*((axis.kernel, axis.stride, axis.dilation) for axis in axes), strict=True)
    pool, padding = _MAXIMA[len(axes)], begins if even else 0
    if not places:
        return pool(x, kernel, strides, padding, dilations, ceil), None
    values, where = pool(x, kernel, strides, padding, dilations, ceil, True)
    return values, where if even else _before_padding(where, x.shape[2:], axes)


def _fit_kernel(axes: Sequence[Axis]) -> bool:
    """Say whether torch's kernels take the padding: the same at both ends, half a window at most."""
    return is_balanced(axes) and all(2 * axis.begin <= axis.kernel for axis in axes)


def _before_padding(places: Tensor, padded: Sequence[int], axes: Sequence[Axis]) -> Tensor:
    coordinates = _coordinates(places, padded)
    return _flat([at - axis.begin for at, axis in zip(coordinates, axes, strict=True)], [axis.size for axis in axes])


def _in_whole(places: Tensor, x: Tensor, column_major: int) -> Tensor:
    """Count from the first entry of the tensor; column-major means a channel's axes in reverse."""
    sizes = x.shape[2:]
    if column_major:
        places = _flat(_coordinates(places, sizes)[::-1], list(sizes)[::-1])
    channels = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[0], x.shape[1], *[1] * len(sizes))
    return places + channels * math.prod(sizes)


def _coordinates(places: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    coordinates: list[Tensor] = []
    for size in reversed(sizes):
        coordinates.insert(0, places % size)
        places = torch.div(places, size, rounding_mode="floor")
    return coordinates


def _flat(coordinates: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    places = coordinates[0]
    for at, size in zip(coordinates[1:], sizes[1:], strict=True):
        places = places * size + at
    return places


@lower("AveragePool")
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Return the mean of every window, over its entries within the tensor or its padding."""
    rank = spatial_rank(x, "AveragePool")
    axes = axes_of(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if _fit_kernel(axes) and all(axis.dilation == 1 for axis in axes):
        steps, begins = [axis.stride for axis in axes], [axis.begin for axis in axes]
        return _AVERAGES[rank](x, list(kernel_shape), steps, begins, bool(ceil_mode), bool(count_include_pad))
    last = list(range(-rank, 0))
    return unfold(x, axes, bool(ceil_mode)).sum(last) / _entries(x, axes, bool(ceil_mode), bool(count_include_pad))


def _entries(x: Tensor, axes: Sequence[Axis], ceil: bool, padding_counts: bool) -> Tensor:
    """Count the entries of every window."""
    total = x.new_ones(())
    for axis in axes:
        line = F.pad(x.new_ones(axis.size), [axis.begin, axis.end], value=float(padding_counts))
        line = F.pad(line, [0, axis.overhang(ceil) - axis.end])
        total = total.unsqueeze(-1) * line.unfold(0, axis.span, axis.stride)[:, :: axis.dilation].sum(-1)
    return total


@lower("LpPool")
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int],
    p: float = 2.0,
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Return the p-norm of every window."""
    axes = axes_of(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    norm: Tensor = torch.linalg.vector_norm(unfold(x, axes, bool(ceil_mode)), p, list(range(-len(axes), 0)))
    return norm


@lower("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2.0) -> Tensor:
    """Return the p-norm of every channel."""
    norm: Tensor = torch.linalg.vector_norm(x, p, list(range(2, x.dim())), keepdim=True)
    return norm


@lower("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """Return the mean of every channel."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


@lower("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """Return the largest entry of every channel."""
    return x.amax(list(range(2, x.dim())), keepdim=True)


@lower("MaxUnpool")
def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Put the entries that a max pooling kept back where they were, among zeros."""
    rank = len(kernel_shape)
    pads, strides = pads or [0] * (2 * rank), strides or [1] * rank
    rows = zip(x.shape[2:], kernel_shape, strides, pads[:rank], pads[rank:], strict=True)
    shape = [*x.shape[:2], *((size - 1) * stride - begin - end + kernel for size, kernel, stride, begin, end in rows)]
    y = x.new_zeros(math.prod(shape)).scatter(0, places.flatten(), x.flatten()).view(shape)
    if output_shape is None:
        return y
    return pad_axes(y, [(0, wanted - size) for wanted, size in zip(output_shape, shape, strict=True)])
