"""ONNX Runtime's operators from integers to integers: restored, computed in floats, and rounded again.

Products stay integers until the end, and are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.integer_products import centred, qlinear_conv, requantized
from bevel.backends.torch.ops.pooling import average_pool
from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel

MICROSOFT: Final = "com.microsoft"


def restored(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return what integers stand for."""
    entries = x.to(scale.dtype)
    return (entries if zero is None else entries - zero.to(scale.dtype)) * scale


def rounded(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the integers that stand for numbers, halves rounded to even; with a zero point they have its type."""
    return saturated(torch.round(x / scale), zero, dtype)


def saturated(x: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add a zero point, and round and saturate to its type: what is a half then goes to the even integer."""
    dtype = dtype if zero is None else zero.dtype
    limits = torch.iinfo(dtype)
    return torch.round(x if zero is None else x + zero.to(x.dtype)).clamp(limits.min, limits.max).to(dtype)


@lower("QLinearAdd", domain=MICROSOFT)
def qlinear_add(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
) -> Tensor:
    """Add quantized operands that broadcast."""
    total = restored(a, a_scale, a_zero) + restored(b, b_scale, b_zero)
    return saturated(total / y_scale, y_zero, a.dtype)


@lower("QLinearMul", domain=MICROSOFT)
def qlinear_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
) -> Tensor:
    """Multiply quantized operands that broadcast."""
    product = restored(a, a_scale, a_zero) * restored(b, b_scale, b_zero)
    return saturated(product / y_scale, y_zero, a.dtype)


@lower("QLinearWhere", domain=MICROSOFT)
def qlinear_where(
    condition: Tensor,
    yes: Tensor,
    yes_scale: Tensor,
    yes_zero: Tensor,
    no: Tensor,
    no_scale: Tensor,
    no_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """Choose between quantized operands that broadcast."""
    chosen = torch.where(condition, restored(yes, yes_scale, yes_zero), restored(no, no_scale, no_zero))
    return rounded(chosen, y_scale, y_zero, yes.dtype)


@lower("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Apply the sigmoid to a quantized operand."""
    return rounded(restored(x, x_scale, x_zero).sigmoid(), y_scale, y_zero, x.dtype)


@lower("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    """Multiply what is negative of a quantized operand with a slope."""
    return rounded(F.leaky_relu(restored(x, x_scale, x_zero), alpha), y_scale, y_zero, x.dtype)


@lower("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor,
    *,
    axis: int = -1,
    opset: int,
) -> Tensor:
    """Normalise a quantized operand over one axis, or before opset 13 over all axes from one on."""
    scores = restored(x, x_scale, x_zero)
    weights = scores.softmax(axis) if opset >= 13 else scores.flatten(axis).softmax(-1).reshape(x.shape)
    return rounded(weights, y_scale, y_zero, x.dtype)


@lower("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(y_scale: Tensor, y_zero: Tensor, *operands: Tensor, axis: int) -> Tensor:
    """Lay quantized operands end to end; each stands before its scale and zero point."""
    triples = zip(operands[::3], operands[1::3], operands[2::3], strict=True)
    whole = torch.cat([restored(x, scale, zero) for x, scale, zero in triples], axis)
    return rounded(whole, y_scale, y_zero, operands[0].dtype)


@lower("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    *,
    channels_last: int = 0,
) -> Tensor:
    """Average all positions of a quantized operand."""
    axes = list(range(1, x.dim() - 1)) if channels_last else list(range(2, x.dim()))
    mean = restored(x, x_scale, x_zero).mean(axes, keepdim=True)
    return saturated(mean / y_scale, y_zero, x.dtype)


@lower("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Average windows of positions of a quantized operand."""
    entries = restored(x, x_scale, x_zero)
    mean = average_pool(
        entries.movedim(-1, 1) if channels_last else entries,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return saturated((mean.movedim(1, -1) if channels_last else mean) / y_scale, y_zero, x.dtype)


@lower("QLinearConv", domain=MICROSOFT)
def qlinear_conv_of_runtime(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Slide filters of integers over entries whose channels may come last, and quantize the result."""
    y = qlinear_conv(
        x.movedim(-1, 1) if channels_last else x,
        x_scale,
        x_zero,
        w,
        w_scale,
        w_zero,
        y_scale,
        y_zero,
        bias,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return y.movedim(1, -1) if channels_last else y


@lower("QGemm", domain=MICROSOFT)
def qgemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Multiply matrices of integers and add integers; without a scale of its own the result is floats."""
    if y_zero is not None and y_scale is None:
        raise UnsupportedModel("its result has a zero point and no scale", where="QGemm")
    left = centred(a.t() if transA else a, a_zero)
    total = left @ centred(b.t() if transB else b, b_zero)
    total = total if c is None else total + c.to(total.dtype)
    ratio = alpha * a_scale * b_scale
    if y_scale is None:
        return total.to(ratio.dtype) * ratio
    return requantized(total, ratio / y_scale, y_zero, a.dtype)
