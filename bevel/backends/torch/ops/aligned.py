"""Operators of two tensors before operator set 7: the second is aligned to the first at an axis, where asked for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevel.backends.torch.ops.arithmetic import add, divide, multiply, power, subtract
from bevel.backends.torch.ops.logic import equal, greater, less
from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel


def aligned(a: Tensor, b: Tensor, axis: int | None, broadcast: int) -> Tensor:
    """Return `b` with axes of size 1 appended, so that its first axis meets `axis` of `a`."""
    if not broadcast and a.dim() != b.dim():
        raise UnsupportedModel(
            f"tensors of {a.dim()} and {b.dim()} axes are combined without broadcasting",
            remedy="set the attribute `broadcast`, or convert the model to operator set 7 or later",
        )
    if not broadcast or axis is None or b.dim() == 0:
        return b
    behind = a.dim() - axis % a.dim() - b.dim()
    return b.reshape(*b.shape, *[1] * behind)


@lower("Add", until=6)
def add_aligned(
    a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Sequence[int] = ()
) -> Tensor:
    """Return a + b."""
    return add(a, aligned(a, b, axis, broadcast))


@lower("Sub", until=6)
def subtract_aligned(
    a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Sequence[int] = ()
) -> Tensor:
    """Return a - b."""
    return subtract(a, aligned(a, b, axis, broadcast))


@lower("Mul", until=6)
def multiply_aligned(
    a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Sequence[int] = ()
) -> Tensor:
    """Return a * b."""
    return multiply(a, aligned(a, b, axis, broadcast))


@lower("Div", until=6)
def divide_aligned(
    a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0, consumed_inputs: Sequence[int] = ()
) -> Tensor:
    """Return a / b, of integers rounded towards zero."""
    return divide(a, aligned(a, b, axis, broadcast))


@lower("Pow", until=6)
def power_aligned(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Return a ** b."""
    return power(a, aligned(a, b, axis, broadcast))


@lower("And", until=6)
def and_aligned(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Return where both are true."""
    return torch.logical_and(a, aligned(a, b, axis, broadcast))


@lower("Or", until=6)
def or_aligned(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Return where one of both is true."""
    return torch.logical_or(a, aligned(a, b, axis, broadcast))


@lower("Xor", until=6)
def xor_aligned(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Return where exactly one of both is true."""
    return torch.logical_xor(a, aligned(a, b, axis, broadcast))


@lower("Equal", until=6)
def equal_aligned(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Return where both are equal."""
    return equal(a, aligned(a, b, axis, broadcast))


@lower("Less", until=6)
def less_aligned(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Return where a < b."""
    return less(a, aligned(a, b, axis, broadcast))


@lower("Greater", until=6)
def greater_aligned(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Return where a > b."""
    return greater(a, aligned(a, b, axis, broadcast))
