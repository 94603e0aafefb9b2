"""Sorting: the largest elements, and the different ones."""

import torch
from torch import Tensor

from bevel.backends.torch.table import Int, lower


@lower("TopK", until=9)
def top_k_fixed(x: Tensor, k: Int, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Return the `k` largest elements along an axis, and their places."""
    return top_k(x, k, axis=axis)


@lower("TopK", since=10)
def top_k(x: Tensor, k: Int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Return the `k` largest (or smallest) elements along an axis, and their places; of equal ones the first."""
    # torch.topk leaves open which of equal elements it returns.
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


@lower("Unique")
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the different elements (or slices along an axis), their first places, the way back, and their counts."""
    along = x.reshape(-1) if axis is None else x
    axis = 0 if axis is None else axis
    values, back, counts = torch.unique(along, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(back.shape[0], device=x.device)
    first = torch.full_like(counts, back.shape[0]).scatter_reduce(0, back, places, "amin")
    if sorted:
        return values, first, back, counts
    order = torch.argsort(first)
    return values.index_select(axis, order), first[order], torch.argsort(order)[back], counts[order]
