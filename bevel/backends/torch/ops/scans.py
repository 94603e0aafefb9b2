"""Functions along one axis: places of extremes, running sums and products, softmax."""

import torch
from torch import Tensor

from bevel.backends.torch.ops.wide import in_order, modular
from bevel.backends.torch.table import Int, lower


@lower("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Return where the largest number along an axis is: the first of several, or the last."""
    x = in_order(x)
    if not select_last_index:
        return torch.argmax(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))


@lower("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Return where the smallest number along an axis is: the first of several, or the last."""
    x = in_order(x)
    if not select_last_index:
        return torch.argmin(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, keepdim=bool(keepdims))


@lower("CumSum")
def cumulative_sum(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Return running sums along an axis."""
    x = x.flip(axis) if reverse else x
    if exclusive:
        x = _delayed(x, axis, 0)
    sums = modular(lambda x: x.cumsum(axis, dtype=x.dtype), x)
    return sums.flip(axis) if reverse else sums


@lower("CumProd")
def cumulative_product(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Return running products along an axis."""
    x = x.flip(axis) if reverse else x
    if exclusive:
        x = _delayed(x, axis, 1)
    products = modular(lambda x: x.cumprod(axis, dtype=x.dtype), x)
    return products.flip(axis) if reverse else products


def _delayed(x: Tensor, axis: int, first: int) -> Tensor:
    """Move the elements along an axis by one place, and put a number in front."""
    before = torch.full_like(x.narrow(axis, 0, 1), first)
    return torch.cat([before, x.narrow(axis, 0, x.shape[axis] - 1)], axis)


@lower("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Return exponentials divided by their sum along an axis."""
    return torch.softmax(x, axis)


@lower("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Return the logarithms of the softmax along an axis."""
    return torch.log_softmax(x, axis)


@lower("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Return 1 at the first largest number along an axis, 0 elsewhere."""
    places = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, places, 1.0)


@lower("Softmax", until=12)
def softmax_from(x: Tensor, *, axis: int = 1) -> Tensor:
    """Return exponentials divided by their sum over all axes from `axis` on."""
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


@lower("LogSoftmax", until=12)
def log_softmax_from(x: Tensor, *, axis: int = 1) -> Tensor:
    """Return the logarithms of the softmax over all axes from `axis` on."""
    return torch.log_softmax(x.flatten(axis), -1).reshape(x.shape)


@lower("Hardmax", until=12)
def hardmax_from(x: Tensor, *, axis: int = 1) -> Tensor:
    """Return 1 at the first largest number over all axes from `axis` on, 0 elsewhere."""
    return hardmax(x.flatten(axis)).reshape(x.shape)
