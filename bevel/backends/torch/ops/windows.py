"""Where sliding windows lie: the padding and the output sizes of convolutions and poolings.

ONNX lists padding as [begin of every axis, end of every axis], or asks for `auto_pad`; windows of a ceil mode may reach
over the end. Sizes are Python integers or the symbolic ones of `torch.export`, so nothing here branches on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.errors import UnsupportedModel

Size = TypeVar("Size", int, float)

# Torch leaves these without types.
_SYMBOLIC: Final[Mapping[str, Callable[..., Any]]] = {
    "min": torch.sym_min,
    "max": torch.sym_max,
    "int": torch.sym_int,
}


class Axis(NamedTuple):
    """The windows along one spatial axis."""

    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0

    @property
    def span(self) -> int:
        """Return how many positions a window reaches over."""
        return (self.kernel - 1) * self.dilation + 1

    def count(self, ceil: bool) -> int:
        """Return how many windows there are; one that would start in the padding at the end is none."""
        slack = self.size + self.begin + self.end - self.span
        if not ceil:
            return slack // self.stride + 1
        return least(-(-slack // self.stride) + 1, -(-(self.size + self.begin) // self.stride))

    def overhang(self, ceil: bool) -> int:
        """Return what the last window needs after the end, negative if positions remain that no window reaches."""
        return (self.count(ceil) - 1) * self.stride + self.span - self.size - self.begin


def least(left: Size, right: Size) -> Size:
    """Return the smaller of two numbers, which may be symbolic."""
    plain = isinstance(left, int | float) and isinstance(right, int | float)
    return min(left, right) if plain else _SYMBOLIC["min"](left, right)


def most(left: Size, right: Size) -> Size:
    """Return the larger of two numbers, which may be symbolic."""
    plain = isinstance(left, int | float) and isinstance(right, int | float)
    return max(left, right) if plain else _SYMBOLIC["max"](left, right)


def whole(number: float) -> int:
    """Return a number, which may be symbolic, without its fraction."""
    return int(number) if isinstance(number, int | float) else _SYMBOLIC["int"](number)


def axes_of(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
) -> list[Axis]:
    """Put the attributes of a convolution or pooling together, axis by axis; empty lists are defaults."""
    rank = len(kernel)
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * (2 * rank)
    if auto_pad != "NOTSET":
        pads = [0] * (2 * rank)
    rows = zip(sizes, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
    return [same(Axis(*row), auto_pad) for row in rows]


def same(axis: Axis, auto_pad: str) -> Axis:
    """Pad an axis so that it has one window a stride; an odd position goes to the end if `SAME_UPPER`."""
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return axis
    if axis.stride == 1:
        total = axis.span - 1
    else:
        total = most((-(-axis.size // axis.stride) - 1) * axis.stride + axis.span - axis.size, 0)
    small = total // 2
    begin, end = (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)
    return axis._replace(begin=begin, end=end)


def is_balanced(axes: Sequence[Axis]) -> bool:
    """Say whether every axis is known to have as much padding at its begin as at its end."""
    return all(isinstance(axis.begin, int) and axis.begin == axis.end for axis in axes)


def pad_axes(x: Tensor, amounts: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad (or, where negative, crop) the last axes."""
    if all(isinstance(amount, int) and amount == 0 for pair in amounts for amount in pair):
        return x
    return F.pad(x, [amount for pair in reversed(amounts) for amount in pair], value=value)


def unfold(x: Tensor, axes: Sequence[Axis], ceil: bool, value: float = 0.0) -> Tensor:
    """Return a view with the entries of every window in as many last axes as there are spatial ones."""
    x = pad_axes(x, [(axis.begin, axis.overhang(ceil)) for axis in axes], value)
    first = x.dim() - len(axes)
    for place, axis in enumerate(axes):
        x = x.unfold(first + place, axis.span, axis.stride)[..., :: axis.dilation]
    return x


def spatial_rank(x: Tensor, op_type: str) -> int:
    """Return the number of spatial axes, which torch's kernels know from one to three."""
    rank = x.dim() - 2
    if not 1 <= rank <= 3:
        raise UnsupportedModel(
            f"{op_type} over {rank} spatial axes", remedy="PyTorch has kernels for one, two and three of them"
        )
    return rank
