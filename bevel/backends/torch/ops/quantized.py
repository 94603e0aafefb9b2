"""Rounding to integers and small floats, and back: one scale for all, for each entry of an axis, or for each block."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
import torch
from torch import Tensor

from bevel.backends.torch.table import lower
from bevel.backends.torch.types import torch_type
from bevel.errors import UnsupportedModel

MICROSOFT: Final = "com.microsoft"
RANGES: Final = {
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
}
FLOAT8: Final = (
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
)
STANDARD: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOAT4_LARGEST: Final = 6.0


@lower("QuantizeLinear")
@lower("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    input_types: tuple[int, ...] = (),
) -> Tensor:
    """Divide by the scale, round halves to even, add the zero point, and saturate."""
    target = input_types[2] if y_zero_point is not None else output_dtype or ir.DataType.UINT8
    wide = torch_type(precision) if precision else common_float(x.dtype, y_scale.dtype)
    quotient = x.to(wide) / spread(y_scale.to(wide), x, axis, block_size)
    if target in RANGES:
        zero = None if y_zero_point is None else spread(y_zero_point, x, axis, block_size)
        return to_integer(quotient, zero, target)
    return to_small_float(quotient, target, saturate=bool(saturate))


def common_float(*dtypes: torch.dtype) -> torch.dtype:
    """Return the type in which floats of these types meet; integers and small floats follow the others."""
    wide = [dtype for dtype in dtypes if dtype in STANDARD] or [torch.float32]
    result = wide[0]
    for dtype in wide[1:]:
        result = torch.promote_types(result, dtype)
    return result


def spread(scale: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """Return scales or zero points so that they broadcast over what they quantize."""
    if scale.numel() == 1:
        return scale.reshape(())
    if block:
        return scale.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return scale.reshape(shape)


def to_integer(x: Tensor, zero: Tensor | None, target: int) -> Tensor:
    """Round halves to even, add a zero point and saturate; half precision could not hold the sum."""
    low, high = RANGES[ir.DataType(target)]
    whole = torch.round(x).to(torch.promote_types(x.dtype, torch.float32))
    if zero is not None:
        whole = whole + zero.to(whole.dtype)
    return whole.clamp(low, high).to(torch.int32).to(torch_type(target))


def to_small_float(x: Tensor, target: int, *, saturate: bool) -> Tensor:
    """Round to a float of four or eight bits."""
    if target == ir.DataType.FLOAT4E2M1:
        return to_float4(x)
    if target not in FLOAT8:
        name = ir.DataType(target).name
        raise UnsupportedModel(f"torch cannot quantize to {name}", where="QuantizeLinear")
    dtype = torch_type(target)
    if saturate:
        largest = torch.finfo(dtype).max
        x = x.clamp(-largest, largest)
    return x.to(dtype)


def to_float4(x: Tensor) -> Tensor:
    """Round to 0, 0.5, 1, 1.5, 2, 3, 4, 6 of either sign, halves to the even code, held as float8."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(x.dtype)
    nearest = torch.round(x / step) * step
    return nearest.clamp(-FLOAT4_LARGEST, FLOAT4_LARGEST).to(torch.float8_e4m3fn)


@lower("DequantizeLinear")
@lower("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """Subtract the zero point and multiply with the scale, in single precision at least."""
    wide = common_float(torch.float32, x_scale.dtype)
    entries = x.to(wide)
    if x_zero_point is not None:
        entries = entries - spread(x_zero_point.to(wide), x, axis, block_size)
    restored = entries * spread(x_scale.to(wide), x, axis, block_size)
    return restored.to(torch_type(output_dtype) if output_dtype else x_scale.dtype)


@lower("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to unsigned bytes by a scale that spans all entries and zero."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    span = torch.where(low == high, torch.ones_like(high), high - low)
    scale = span / 255
    zero = torch.round((-low / scale).clamp(0, 255))
    rounded = (torch.round(x / scale) + zero).clamp(0, 255)
    return rounded.to(torch.uint8), scale, zero.to(torch.uint8)
