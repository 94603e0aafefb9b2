"""Reductions over axes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bevel.backends.torch.ops.wide import as_float, modular, ordered
from bevel.backends.torch.table import Ints, lower


def reduced(x: Tensor, axes: Sequence[int] | None, noop: int) -> list[int] | None:
    """Return the axes to reduce, or None for nothing: empty `axes` mean all of them unless `noop` is set."""
    if axes is not None and len(axes):
        return [axis % x.dim() for axis in axes]
    return None if noop else list(range(x.dim()))


def _reduce(function: Callable[..., Tensor], x: Tensor, axes: Sequence[int] | None, keepdims: int, noop: int) -> Tensor:
    """Call `function(x, axes, keepdim)` unless nothing is reduced."""
    chosen = reduced(x, axes, noop)
    return x if not chosen else function(x, chosen, bool(keepdims))


def _sum(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return modular(lambda x: x.sum(axes, keepdim=keepdim, dtype=x.dtype), x)


def _mean(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return as_float(lambda x: x.mean(axes, keepdim=keepdim), x)


def _product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = modular(lambda x, axis=axis: x.prod(axis, keepdim=keepdim, dtype=x.dtype), x)
    return x


def _largest(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return ordered(lambda x: _or_identity(x, axes, _lowest(x)).amax(axes, keepdim=keepdim), x)


def _smallest(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return ordered(lambda x: _or_identity(x, axes, _highest(x)).amin(axes, keepdim=keepdim), x)


def _or_identity(x: Tensor, axes: list[int], identity: Any) -> Tensor:
    """Return x, or where the reduced axes are empty, the one element that a reduction of nothing gives."""
    if not any(isinstance(x.shape[axis], int) and x.shape[axis] == 0 for axis in axes):
        return x
    return x.new_full([1 if axis in axes else size for axis, size in enumerate(x.shape)], identity)


def _lowest(x: Tensor) -> Any:
    if x.dtype is torch.bool:
        return False
    return -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min


def _highest(x: Tensor) -> Any:
    if x.dtype is torch.bool:
        return True
    return torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).max


@lower("ReduceSum")
def reduce_sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return sums over axes."""
    return _reduce(_sum, x, axes, keepdims, noop_with_empty_axes)


@lower("ReduceMean")
def reduce_mean(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return means over axes, of integers rounded towards zero."""
    return _reduce(_mean, x, axes, keepdims, noop_with_empty_axes)


@lower("ReduceProd")
def reduce_prod(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return products over axes."""
    return _reduce(_product, x, axes, keepdims, noop_with_empty_axes)


@lower("ReduceMax")
def reduce_max(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return the largest numbers along axes."""
    return _reduce(_largest, x, axes, keepdims, noop_with_empty_axes)


@lower("ReduceMin")
def reduce_min(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return the smallest numbers along axes."""
    return _reduce(_smallest, x, axes, keepdims, noop_with_empty_axes)


@lower("ReduceL1")
def reduce_l1(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return sums of absolute values over axes."""
    size = x if x.dtype in (torch.uint32, torch.uint64) else x.abs()
    return _reduce(_sum, size, axes, keepdims, noop_with_empty_axes)


@lower("ReduceL2")
def reduce_l2(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return square roots of sums of squares over axes."""
    chosen = reduced(x, axes, noop_with_empty_axes)
    if not chosen:
        return x.abs()
    return as_float(lambda x: torch.linalg.vector_norm(x, dim=chosen, keepdim=bool(keepdims)), x)


@lower("ReduceSumSquare")
def reduce_sum_square(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Return sums of squares over axes."""
    return _reduce(_sum, modular(torch.square, x), axes, keepdims, noop_with_empty_axes)


@lower("ReduceLogSum")
def reduce_log_sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Return logarithms of sums over axes."""
    return as_float(lambda x: torch.log(_reduce(_sum, x, axes, keepdims, noop_with_empty_axes)), x)


@lower("ReduceLogSumExp")
def reduce_log_sum_exp(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Return logarithms of sums of exponentials over axes."""
    return as_float(lambda x: _reduce(torch.logsumexp, x, axes, keepdims, noop_with_empty_axes), x)
