"""Element types for which torch has few functions: numbers are computed in a wider type, moves are made on the bits."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

UNSIGNED: Final = frozenset({torch.uint16, torch.uint32, torch.uint64})
LOWEST: Final = torch.iinfo(torch.int64).min

_BITS: Final = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e4m3fnuz: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.float8_e5m2fnuz: torch.uint8,
    torch.float8_e8m0fnu: torch.uint8,
}


def modular(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """Call a function whose result modulo 2**64 follows from its operands modulo 2**64, such as a sum.

    Unsigned numbers are given to it as int64, and the result wraps around to their type.
    """
    kind = operands[0].dtype
    if kind not in UNSIGNED:
        return function(*operands)
    return function(*(operand.to(torch.int64) for operand in operands)).to(kind)


def ordered(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """Call a function that only compares its operands and returns some of them, or truth values, or indices.

    Unsigned numbers are given to it as int64 in the same order.
    """
    kind = operands[0].dtype
    if kind not in UNSIGNED:
        return function(*operands)
    result = function(*(_in_order(operand) for operand in operands))
    return result if result.dtype is torch.bool else _back(result, kind)


def in_order(x: Tensor) -> Tensor:
    """Return unsigned numbers as int64 in the same order, and others as they are."""
    return _in_order(x) if x.dtype in UNSIGNED else x


def moved(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """Call a function that moves elements without looking at them, on their bits where torch moves no such type."""
    kind = operands[0].dtype
    if kind not in _BITS:
        return function(*operands)
    return function(*(operand.view(_BITS[kind]) for operand in operands)).view(kind)


def _in_order(x: Tensor) -> Tensor:
    return x.to(torch.int64) ^ LOWEST if x.dtype is torch.uint64 else x.to(torch.int64)


def _back(x: Tensor, kind: torch.dtype) -> Tensor:
    return (x ^ LOWEST).to(kind) if kind is torch.uint64 else x.to(kind)


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """Return the quotients of uint64 numbers given as int64 of the same bits, rounded down.

    Halves fit int64: a // b is 2 * ((a >> 1) // b), and one more where the rest is still b or more. A divisor with the
    highest bit set goes into `a` once or not at all.
    """
    half = (a >> 1) & ~LOWEST
    estimate = torch.div(half, b, rounding_mode="floor") << 1
    below = estimate + _not_less(a - estimate * b, b)
    return torch.where(b < 0, _not_less(a, b), below)


def _not_less(a: Tensor, b: Tensor) -> Tensor:
    return ((a ^ LOWEST) >= (b ^ LOWEST)).to(torch.int64)


def as_float(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function of floating point numbers on numbers of any type; the result is rounded to that type."""
    if x.is_floating_point():
        return function(x)
    return function(x.to(torch.float64)).to(x.dtype)
