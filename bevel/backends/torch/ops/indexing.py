"""Gathering and scattering."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevel.backends.torch.ops.wide import in_order, moved
from bevel.backends.torch.table import PLAIN, Int, lower, write
from bevel.errors import UnsupportedModel


def counted(indices: Tensor, size: int) -> Tensor:
    """Return indices as int64, those counted from the end as counted from the front."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


write("Gather", "{0}.select({axis}, {1})", types=PLAIN, literal=True, defaults={"axis": 0})


@lower("Gather")
def gather(x: Any, indices: Tensor, *, axis: int = 0) -> Any:
    """Return slices of x along an axis; the axes of the indices take its place."""
    if not isinstance(x, Tensor):
        return np.take(x, indices.cpu().numpy(), axis)
    axis = axis % x.dim()
    picked = x.index_select(axis, counted(indices, x.shape[axis]).reshape(-1))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@lower("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Return for each place the element of x at an index along an axis."""
    places = counted(indices, x.shape[axis])
    return moved(lambda x: x.gather(axis, places), x)


@lower("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Return slices of x; the last axis of the indices counts along its axes after the first `batch_dims`."""
    places = range(indices.dim() - 1)
    lead = [
        torch.arange(x.shape[axis], device=x.device).reshape([-1 if axis == place else 1 for place in places])
        for axis in range(batch_dims)
    ]
    return x[(*lead, *indices.to(torch.int64).unbind(-1))]


@lower("Scatter", "ScatterElements")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """Return x with updates put at indices along an axis, or combined with what is there."""
    places = counted(indices, x.shape[axis])
    if reduction == "none":
        return moved(lambda x, updates: x.scatter(axis, places, updates), x, updates)
    return _combined(x, axis, places, updates, reduction)


def _combined(x: Tensor, axis: int, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """Combine updates with the elements of x by "add", "mul", "max" or "min"."""
    function = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    wide = in_order if reduction in ("max", "min") else _modular
    result = wide(x).scatter_reduce(axis, places, wide(updates), function)
    if x.dtype is torch.uint64 and reduction in ("max", "min"):
        result = result ^ torch.iinfo(torch.int64).min
    return result.to(x.dtype)


def _modular(x: Tensor) -> Tensor:
    return x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x


@lower("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Return x with slices put at indices, or combined with what is there."""
    depth = indices.shape[-1]
    places = indices.to(torch.int64).unbind(-1)
    if reduction == "none":
        return moved(lambda x, updates: x.index_put(places, updates), x, updates)
    number = torch.zeros_like(places[0])
    for axis, place in enumerate(places):
        number = number * x.shape[axis] + counted(place, x.shape[axis])
    rows = x.reshape(_product(x.shape[:depth]), -1)
    entries = updates.reshape(_product(number.shape), -1)
    result = _combined(rows, 0, number.reshape(-1, 1).expand_as(entries), entries, reduction)
    return result.reshape(x.shape)


def _product(sizes: Any) -> Any:
    total = 1
    for size in sizes:
        total = total * size
    return total


@lower("Where")
def where(condition: Tensor, yes: Any, no: Any) -> Any:
    """Return elements of the one where the condition holds, of the other elsewhere."""
    if isinstance(yes, Tensor):
        return torch.where(condition, yes, no)
    return np.where(condition.cpu().numpy(), yes, no)


@lower("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """Return the places of what is not zero, one a column."""
    return torch.nonzero(x != 0).t()


@lower("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """Return the slices along an axis, or the elements, for which the condition holds."""
    places = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1).index_select(0, places) if axis is None else x.index_select(axis, places)


@lower("OneHot")
def one_hot(indices: Tensor, depth: Int, values: Tensor, *, axis: int = -1) -> Tensor:
    """Return the second of `values` at each index along a new axis of size `depth`, elsewhere the first."""
    axis = axis % (indices.dim() + 1)
    places = counted(indices, depth).unsqueeze(axis)
    classes = torch.arange(depth, device=indices.device).reshape([-1, *[1] * (indices.dim() - axis)])
    return torch.where(places == classes, values[1], values[0])


@lower("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """Return x with the first elements along time reversed, as many as each sequence is long."""
    steps = torch.arange(x.shape[time_axis], device=x.device).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    places = places if time_axis < batch_axis else places.t()
    places = places.reshape([size if axis in (time_axis, batch_axis) else 1 for axis, size in enumerate(x.shape)])
    return moved(lambda x: x.gather(time_axis, places.expand(x.shape)), x)


@lower("TensorScatter")
def tensor_scatter(
    x: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """Return a cache with an update written along an axis, at an index for each entry of the batch."""
    if axis % x.dim() == 0:
        raise UnsupportedModel("TensorScatter writes along the batch axis", remedy="set its axis to another one")
    steps = torch.arange(update.shape[axis], device=x.device)
    places = steps.unsqueeze(0) if write_indices is None else write_indices.reshape(-1, 1) + steps
    places = places % x.shape[axis] if mode == "circular" else places
    sizes = [1] * x.dim()
    sizes[0], sizes[axis] = places.shape
    places = places.reshape(sizes)
    return moved(lambda x, update: x.scatter(axis, places.expand(update.shape), update), x, update)
