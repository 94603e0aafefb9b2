"""Operators that cut out of tensors and pad them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.wide import moved
from bevel.backends.torch.table import Ints, Number, lower


@lower("Slice")
def slice_of(x: Any, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Any:
    """Return every `steps`-th element from `starts` up to `ends` along axes; a negative step goes backwards."""
    steps = [1] * len(starts) if steps is None else steps
    axes = range(len(starts)) if axes is None else axes
    cuts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            x = x.flip(axis) if isinstance(x, Tensor) else np.flip(x, axis)
            start, end = _mirrored(start, x.shape[axis]), _mirrored(end, x.shape[axis])
        cuts[axis] = slice(start, end, abs(step))
    return x[tuple(cuts)]


def _mirrored(place: int, size: int) -> int:
    """Return where a place is after a flip: the last becomes 0. What is counted from the end needs no size for that."""
    return -1 - place if place < 0 else _most(size - 1 - place, 0)


def _most(size: int, other: int) -> int:
    return torch.sym_max(size, other)  # type: ignore[no-any-return, no-untyped-call]


@lower("Pad", until=1)
def pad_first(x: Tensor, *, paddings: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Return x with elements put in front of and behind each axis."""
    return pad(x, paddings, value, mode=mode)


@lower("Pad", since=2, until=10)
def pad_fixed(x: Tensor, *, pads: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Return x with elements put in front of and behind each axis."""
    return pad(x, pads, value, mode=mode)


@lower("Pad", since=11)
def pad(
    x: Tensor, pads: Ints, constant_value: Number | None = None, axes: Ints | None = None, *, mode: str = "constant"
) -> Tensor:
    """Return x with elements put in front of and behind axes: a constant, the edge, the reflection or the other end."""
    places = [axis % x.dim() for axis in (range(x.dim()) if axes is None else axes)]
    if mode != "constant":
        for axis, before, after in zip(places, pads[: len(places)], pads[len(places) :], strict=True):
            x = _continued(x, axis, before, after, mode)
        return x
    widths = [0] * (2 * x.dim())
    for axis, before, after in zip(places, pads[: len(places)], pads[len(places) :], strict=True):
        widths[2 * (x.dim() - 1 - axis)], widths[2 * (x.dim() - 1 - axis) + 1] = before, after
    return F.pad(x, widths, value=constant_value or 0)


def _continued(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Return x with its elements continued at both ends of an axis."""
    if _is_zero(before) and _is_zero(after):
        return x
    size = x.shape[axis]
    places = torch.arange(-before, size + after, device=x.device)
    if mode == "wrap":
        places = places % size
    elif mode == "reflect":
        # The elements go there and back with this period; a single one stays where it is.
        period = 2 * _most(size - 1, 1)
        places = (places % period - (size - 1)).abs()
        places = (size - 1 - places).clamp(min=0)
    else:
        places = places.clamp(0, size - 1)
    return x.index_select(axis, places)


def _is_zero(size: int) -> bool:
    return isinstance(size, int) and size == 0


@lower("CenterCropPad")
def center_crop_pad(x: Tensor, shape: Ints, *, axes: Sequence[int] | None = None) -> Tensor:
    """Return x cut or padded with zeros at both ends of axes, so that they have given sizes."""
    places = range(x.dim()) if axes is None else axes
    widths = [0] * (2 * x.dim())
    for axis, size in zip(places, shape, strict=True):
        missing = size - x.shape[axis]
        # Half of it goes in front, rounded down; a cut takes the larger half from behind as well.
        before = _most(missing, 0) // 2 - _most(-missing, 0) // 2
        behind = 2 * (x.dim() - 1 - axis % x.dim())
        widths[behind], widths[behind + 1] = before, missing - before
    return moved(lambda x: F.pad(x, widths), x)
