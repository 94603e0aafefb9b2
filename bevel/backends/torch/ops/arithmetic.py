"""Arithmetic of two numbers and of many."""

from functools import reduce

import torch
from torch import Tensor

from bevel.backends.torch.ops.wide import UNSIGNED, modular, ordered, quotient
from bevel.backends.torch.table import FLOATS, PLAIN, lower, write

write("Add", "{0} + {1}", since=7, types=PLAIN)
write("Sub", "{0} - {1}", since=7, types=PLAIN)
write("Mul", "{0} * {1}", since=7, types=PLAIN)
write("Div", "{0} / {1}", since=7, types=FLOATS)
write("Pow", "{0} ** {1}", since=7, types=FLOATS, literal=True)


@lower("Add", since=7)
def add(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b."""
    return modular(torch.add, a, b)


@lower("Sub", since=7)
def subtract(a: Tensor, b: Tensor) -> Tensor:
    """Return a - b."""
    return modular(torch.sub, a, b)


@lower("Mul", since=7)
def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return a * b."""
    return modular(torch.mul, a, b)


@lower("Div", since=7)
def divide(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, of integers rounded towards zero."""
    if a.is_floating_point():
        return a / b
    if a.dtype is torch.uint64:
        return modular(quotient, a, b)
    return modular(_truncated, a, b)


def _truncated(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="trunc")


@lower("Mod")
def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Return the rest of a / b with the sign of b, or with that of `a` where `fmod` is set."""
    if a.dtype is torch.uint64:
        return modular(lambda a, b: a - quotient(a, b) * b, a, b)
    return modular(torch.fmod if fmod else torch.remainder, a, b)


@lower("Pow", since=7)
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Return base ** exponent in the type of the base."""
    if base.is_floating_point():
        return torch.pow(base, exponent.to(base.dtype))
    if exponent.is_floating_point():
        return torch.pow(base.to(torch.float64), exponent.to(torch.float64)).to(base.dtype)
    return torch.pow(_signed(base), _signed(exponent)).to(base.dtype)


def _signed(x: Tensor) -> Tensor:
    return x.to(torch.int64) if x.dtype in UNSIGNED else x


@lower("Sum")
def sum_of(*terms: Tensor) -> Tensor:
    """Return the sum of several tensors."""
    return reduce(torch.add, terms)


@lower("Mean")
def mean_of(*terms: Tensor) -> Tensor:
    """Return the mean of several tensors."""
    return reduce(torch.add, terms) / len(terms)


@lower("Max")
def maximum_of(*terms: Tensor) -> Tensor:
    """Return the largest number at each place of several tensors."""
    return reduce(lambda a, b: ordered(torch.maximum, a, b), terms)


@lower("Min")
def minimum_of(*terms: Tensor) -> Tensor:
    """Return the smallest number at each place of several tensors."""
    return reduce(lambda a, b: ordered(torch.minimum, a, b), terms)
