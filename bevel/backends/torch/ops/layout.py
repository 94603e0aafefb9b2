"""Operators that change shapes and move whole axes."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevel.backends.torch.ops.wide import moved
from bevel.backends.torch.table import Int, Ints, lower
from bevel.errors import UnsupportedModel


@lower("Reshape")
def reshape(x: Any, shape: Ints, *, allowzero: int = 0) -> Any:
    """Return x in another shape; a size of 0 is that of x at the same place, unless `allowzero` is set."""
    if allowzero:
        return x.reshape(list(shape))
    return x.reshape([x.shape[axis] if _is(size, 0) else size for axis, size in enumerate(shape)])


@lower("Flatten")
def flatten_to_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """Return x as a matrix: the axes before `axis` are its rows."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@lower("Transpose")
def transpose(x: Any, *, perm: list[int] | None = None) -> Any:
    """Return x with its axes permuted, by default reversed."""
    order = perm if perm is not None else list(range(x.ndim))[::-1]
    return x.permute(order) if isinstance(x, Tensor) else x.transpose(order)


@lower("Concat", until=3)
def concat_channels(*parts: Tensor, axis: int = 1) -> Tensor:
    """Return tensors joined along an axis, by default that of channels."""
    return torch.cat(parts, axis)


@lower("Concat", since=4)
def concat(*parts: Any, axis: int) -> Any:
    """Return tensors joined along an axis."""
    return torch.cat(parts, axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis)


@lower("Split", until=17)
def split(x: Tensor, split: Ints | None = None, *, axis: int = 0, outputs: int) -> tuple[Tensor, ...]:
    """Return parts of given sizes along an axis, by default equal ones."""
    if split is None:
        return torch.split(x, x.shape[axis] // outputs, axis)
    return torch.split(x, list(split), axis)


@lower("Split", since=18)
def split_evenly(
    x: Tensor, split: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    """Return parts of given sizes along an axis, or else as many as asked for, the last of them smaller if need be."""
    if split is not None:
        return torch.split(x, list(split), axis)
    count = num_outputs or outputs
    size = -(-x.shape[axis] // count)
    return torch.split(x, [size] * (count - 1) + [x.shape[axis] - size * (count - 1)], axis)


@lower("Tile", since=6)
def tile(x: Tensor, repeats: Ints) -> Tensor:
    """Return x repeated along each axis."""
    return x.repeat(list(repeats))


@lower("Tile", until=5)
def tile_axis(x: Tensor, tiles: Int, axis: Int) -> Tensor:
    """Return x repeated along one axis."""
    return torch.cat([x] * tiles, axis)


@lower("Expand")
def expand(x: Tensor, shape: Ints) -> Tensor:
    """Return x broadcast with a shape: where one of both has size 1, the other counts."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))  # type: ignore[no-untyped-call]


@lower("Squeeze")
def squeeze(x: Any, axes: Ints | None = None) -> Any:
    """Return x without axes of size 1: the given ones, or all."""
    if axes is None:
        return x.squeeze()
    for axis in axes:
        if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
            raise UnsupportedModel(f"Squeeze removes axis {axis}, whose size is {x.shape[axis]}")
    return x.squeeze(tuple(axes))


@lower("Unsqueeze")
def unsqueeze(x: Any, axes: Ints) -> Any:
    """Return x with axes of size 1 put in at places counted in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
    return x


@lower("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Return blocks of channels as blocks of pixels; the channels are innermost (DCR) or outermost (CRD) in them."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // (b * b), h * b, w * b)
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@lower("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Return blocks of pixels as blocks of channels; the channels are innermost (DCR) or outermost (CRD) in them."""
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(order).reshape(n, c * b * b, h // b, w // b)


@lower("Trilu")
def trilu(x: Tensor, k: Int = 0, *, upper: int = 1) -> Tensor:
    """Return x with zeros below (`upper`) or above the diagonal that is `k` places to the right of the main one."""
    return moved(lambda x: torch.triu(x, k) if upper else torch.tril(x, k), x)


@lower("Shape")
def shape_of(x: Any, *, start: int = 0, end: int | None = None, device: torch.device) -> Tensor:
    """Return the sizes of x, from axis `start` up to `end`."""
    return torch.tensor(list(x.shape[start:end]), dtype=torch.int64, device=device)


@lower("Size")
def size_of(x: Any, *, device: torch.device) -> Tensor:
    """Return the number of elements of x."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64, device=device)


def _is(size: int, number: int) -> bool:
    """Say whether a size is a number; a symbolic one is not."""
    return isinstance(size, int) and size == number
