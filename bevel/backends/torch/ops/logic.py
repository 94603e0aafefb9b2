"""Comparisons, truth values and bits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevel.backends.torch.ops.wide import LOWEST, modular, ordered
from bevel.backends.torch.table import PLAIN, lower, write

write("And", "{0} & {1}", since=7)
write("Or", "{0} | {1}", since=7)
write("Xor", "{0} ^ {1}", since=7)
write("Not", "~{0}")
write("BitwiseAnd", "{0} & {1}")
write("BitwiseOr", "{0} | {1}")
write("BitwiseXor", "{0} ^ {1}")
write("Equal", "{0} == {1}", since=7, types=PLAIN)
write("Less", "{0} < {1}", since=7, types=PLAIN)
write("LessOrEqual", "{0} <= {1}", types=PLAIN)
write("Greater", "{0} > {1}", since=7, types=PLAIN)
write("GreaterOrEqual", "{0} >= {1}", types=PLAIN)


@lower("Equal", since=7)
def equal(a: Any, b: Any) -> Tensor:
    """Return where two tensors, or arrays of strings, are equal."""
    if isinstance(a, Tensor):
        return torch.eq(a, b)
    return torch.tensor(np.asarray(a == b, dtype=bool))


@lower("Less", since=7)
def less(a: Tensor, b: Tensor) -> Tensor:
    """Return where a < b."""
    return ordered(torch.lt, a, b)


@lower("LessOrEqual")
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """Return where a <= b."""
    return ordered(torch.le, a, b)


@lower("Greater", since=7)
def greater(a: Tensor, b: Tensor) -> Tensor:
    """Return where a > b."""
    return ordered(torch.gt, a, b)


@lower("GreaterOrEqual")
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """Return where a >= b."""
    return ordered(torch.ge, a, b)


@lower("BitwiseNot")
def bitwise_not(x: Tensor) -> Tensor:
    """Return numbers with all bits turned."""
    return modular(torch.bitwise_not, x)


@lower("BitShift")
def bit_shift(x: Tensor, places: Tensor, *, direction: str) -> Tensor:
    """Return numbers shifted by binary places to the LEFT or RIGHT; the sign of signed ones stays."""
    if direction == "LEFT":
        return modular(torch.bitwise_left_shift, x, places)
    if x.dtype is torch.uint64:
        return modular(_shifted_right, x, places)
    return modular(torch.bitwise_right_shift, x, places)


def _shifted_right(x: Tensor, places: Tensor) -> Tensor:
    """Shift by one place and clear the sign first: the other places are then filled with zeros."""
    shifted = ((x >> 1) & ~LOWEST) >> (places - 1).clamp(min=0)
    return torch.where(places == 0, x, shifted)
