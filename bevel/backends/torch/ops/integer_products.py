"""Products of integers: exact, since double precision holds every sum of them, and rounded once at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevel.backends.torch.ops.convolution import conv
from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel

INTEGERS = (torch.uint8, torch.int8)


@lower("MatMulInteger")
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """Multiply matrices of integers without their zero points."""
    return to_int32(centred(a, _rows_if_any(a_zero_point)) @ centred(b, b_zero_point))


@lower("QLinearMatMul")
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None,
) -> Tensor:
    """Multiply matrices of integers and quantize the product."""
    total = centred(a, _rows_if_any(a_zero_point)) @ centred(b, b_zero_point)
    ratio = rows(a_scale) * b_scale / rows(y_scale)
    return requantized(total, ratio, _rows_if_any(y_zero_point), a.dtype)


@lower("ConvInteger")
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Slide filters of integers without their zero points."""
    x, w = centred(x, x_zero_point), centred(w, filters(w_zero_point, w))
    total = conv(x, w, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return to_int32(total)


@lower("QLinearConv")
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Slide filters of integers and quantize the result; each filter may have its own scale."""
    entries, weight = centred(x, x_zero_point), centred(w, filters(w_zero_point, w))
    addend = None if bias is None else bias.to(torch.float64)
    total = conv(
        entries, weight, addend, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    ratio = x_scale * w_scale / y_scale
    if ratio.numel() > 1:
        ratio = ratio.reshape([-1] + [1] * (x.dim() - 2))
    return requantized(total, ratio, y_zero_point, x.dtype)


def centred(x: Tensor, zero: Tensor | None) -> Tensor:
    """Return integers without their zero point, in double precision."""
    if x.dtype not in INTEGERS:
        raise UnsupportedModel(f"its operands are {x.dtype}", where="a product of quantized tensors")
    entries = x.to(torch.float64)
    return entries if zero is None else entries - zero.to(torch.float64)


def rows(x: Tensor) -> Tensor:
    """Return one number for each row so that it broadcasts over the columns."""
    return x.unsqueeze(-1) if x.dim() == 1 and x.numel() > 1 else x


def _rows_if_any(x: Tensor | None) -> Tensor | None:
    return None if x is None else rows(x)


def filters(zero: Tensor | None, w: Tensor) -> Tensor | None:
    """Return one zero point for each filter so that it broadcasts over the filters."""
    return zero if zero is None or zero.numel() == 1 else zero.reshape([-1] + [1] * (w.dim() - 1))


def requantized(total: Tensor, ratio: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Scale exact sums in single precision, round halves to even, add the zero point and saturate."""
    dtype = dtype if zero is None else zero.dtype
    scaled = torch.round(total.to(torch.promote_types(ratio.dtype, torch.float32)) * ratio)
    whole = scaled if zero is None else scaled + zero.to(scaled.dtype)
    limits = torch.iinfo(dtype)
    return whole.clamp(limits.min, limits.max).to(torch.int32).to(dtype)


def to_int32(total: Tensor) -> Tensor:
    """Return exact sums, wrapped around where they leave 32 bits."""
    return total.to(torch.int64).to(torch.int32)
