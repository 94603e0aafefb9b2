"""Functions of one number."""

from typing import Final

import torch
from torch import Tensor

from bevel.backends.torch.ops.wide import UNSIGNED, as_float, ordered
from bevel.backends.torch.table import FLOATS, PLAIN, lower, write

_LARGEST: Final = 3.4028234663852886e38

write("Identity", "{0}")
write("Neg", "torch.neg({0})")
write("Abs", "torch.abs({0})", types=PLAIN)
write("Erf", "torch.erf({0})", types=FLOATS)
write("Reciprocal", "torch.reciprocal({0})")
write("Sqrt", "torch.sqrt({0})")
write("Exp", "torch.exp({0})")
write("Log", "torch.log({0})")
write("Floor", "torch.floor({0})")
write("Ceil", "torch.ceil({0})")
write("Round", "torch.round({0})")
write("Sin", "torch.sin({0})")
write("Cos", "torch.cos({0})")
write("Tan", "torch.tan({0})")
write("Asin", "torch.asin({0})")
write("Acos", "torch.acos({0})")
write("Atan", "torch.atan({0})")
write("Sinh", "torch.sinh({0})")
write("Cosh", "torch.cosh({0})")
write("Tanh", "torch.tanh({0})")
write("Asinh", "torch.asinh({0})")
write("Acosh", "torch.acosh({0})")
write("Atanh", "torch.atanh({0})")


@lower("Abs")
def absolute(x: Tensor) -> Tensor:
    """Return numbers without their signs."""
    return x if x.dtype in UNSIGNED else torch.abs(x)


@lower("Sign")
def sign(x: Tensor) -> Tensor:
    """Return -1, 0 or 1, and NaN for NaN."""
    if x.dtype in UNSIGNED:
        return (x != 0).to(x.dtype)
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


@lower("Erf")
def erf(x: Tensor) -> Tensor:
    """Return the error function."""
    return as_float(torch.erf, x)


@lower("Clip", until=10)
def clip_between(x: Tensor, *, min: float = -_LARGEST, max: float = _LARGEST) -> Tensor:
    """Return numbers limited to a range given as attributes, by default that of finite float32 numbers."""
    return torch.clamp(x, min, max)


@lower("Clip", since=11)
def clip(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    """Return numbers limited to a range; where `min` exceeds `max`, all become `max`."""
    if min is not None and max is not None:
        return ordered(torch.clamp, x, min, max)
    if min is not None:
        return ordered(torch.maximum, x, min)
    return x if max is None else ordered(torch.minimum, x, max)


@lower("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Return numbers moved towards zero by `bias`, and zero within `lambd` of it."""
    far = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))
    return far.to(x.dtype)


@lower("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Return whether numbers are infinite, of the signs asked for."""
    x = x.float() if x.element_size() == 1 else x
    found = torch.isposinf(x) if detect_positive else torch.zeros_like(x, dtype=torch.bool)
    return found | torch.isneginf(x) if detect_negative else found


@lower("IsNaN")
def is_nan(x: Tensor) -> Tensor:
    """Return whether numbers are no numbers."""
    return torch.isnan(x.float() if x.element_size() == 1 else x)
