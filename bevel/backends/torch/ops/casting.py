"""Conversions between element types."""

from decimal import Decimal
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bevel.backends.torch.table import PLAIN, DType, lower, write
from bevel.backends.torch.types import to_array, torch_type
from bevel.errors import UnsupportedModel

FLOAT8: Final = frozenset({torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz})
_SMALL: Final = frozenset(
    {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2, ir.DataType.FLOAT4E2M1}
)
_SIGNED: Final = frozenset({ir.DataType.INT4, ir.DataType.INT2})
_OWN: Final = PLAIN | {ir.DataType.BOOL}  # conversions among these are torch's own

write("Cast", "{0}.to({to})", types=_OWN, gives=_OWN, ignores=("saturate", "round_mode"))


@lower("Cast")
def cast(x: Any, *, to: DType, saturate: int = 1, round_mode: str = "up", output_type: int = 0) -> Any:
    """Return x in another element type. What `output_type` names in fewer than 8 bits, `to` holds."""
    if output_type == ir.DataType.STRING:
        return as_strings(x)
    if not isinstance(x, Tensor):
        x = parsed(x, to)
    return converted(x, to, output_type, saturate, round_mode)


@lower("CastLike")
def cast_like(
    x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up", input_types: tuple[int, ...] = ()
) -> Any:
    """Return x in the element type of another tensor."""
    if not isinstance(like, Tensor):
        return as_strings(x)
    if not isinstance(x, Tensor):
        x = parsed(x, like.dtype)
    return converted(x, like.dtype, input_types[1] if input_types else 0, saturate, round_mode)


def converted(x: Tensor, to: torch.dtype, element_type: int, saturate: int, round_mode: str) -> Tensor:
    """Return numbers in another element type."""
    if element_type in _SMALL:
        return _small(x, ir.DataType(element_type))
    if to in FLOAT8:
        return _float8(x, to, saturate)
    if to is torch.float8_e8m0fnu:
        return _float8_exponent(x, saturate, round_mode)
    return x.to(to)


def as_strings(x: Any) -> np.ndarray[Any, Any]:
    """Return numbers as strings, written as numpy does."""
    array = to_array(x) if isinstance(x, Tensor) else x
    if array.dtype.type.__module__ != "numpy":
        array = array.astype(np.float32)
    return np.asarray(array.astype(np.str_), dtype=object)


def parsed(strings: np.ndarray[Any, Any], to: torch.dtype) -> Tensor:
    """Return the numbers that strings spell: in float64, or exactly for integers."""
    if to.is_floating_point:
        wide = np.float32 if to is torch.float32 else np.float64
        return torch.tensor(np.asarray(strings, dtype=np.str_).astype(wide))
    numbers = [int(Decimal(text)) for text in strings.ravel()]
    return torch.tensor(numbers, dtype=torch.uint64 if to is torch.uint64 else torch.int64).reshape(strings.shape)


def _small(x: Tensor, kind: ir.DataType) -> Tensor:
    """Round to a type of fewer than 8 bits; integers lose their higher ones."""
    if kind is ir.DataType.FLOAT4E2M1:
        return _float4(x)
    bits = 2 if kind in (ir.DataType.INT2, ir.DataType.UINT2) else 4
    return _extended(x.to(torch.int64), bits, kind in _SIGNED).to(torch_type(kind))


def _extended(x: Tensor, bits: int, signed: bool) -> Tensor:
    """Return the numbers that the lowest bits spell, where the highest of them may be the sign."""
    code, sign = x & ((1 << bits) - 1), 1 << (bits - 1)
    return (code ^ sign) - sign if signed else code


def _float4(x: Tensor) -> Tensor:
    """Round to a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4 or 6, held as float8.

    There is no NaN; it becomes -0.0 as in ml_dtypes.
    """
    x = x.to(torch.float32).clamp(-6, 6).nan_to_num(nan=-0.0)
    step = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0))
    return (torch.round(x / step) * step).to(torch.float8_e4m3fn)


def _float8(x: Tensor, to: torch.dtype, saturate: int) -> Tensor:
    """Round to 8 bits: what is too large becomes the largest number, or infinite or none if it is not to saturate."""
    x = x.to(torch.float32)
    if saturate:
        return x.clamp(torch.finfo(to).min, torch.finfo(to).max).to(to)
    if to is torch.float8_e4m3fn:
        # Torch may saturate here. 464 lies between the largest number and the next one that would follow.
        x = torch.where(x.abs() > 464, torch.nan, x)
    return x.to(to)


def _float8_exponent(x: Tensor, saturate: int, round_mode: str) -> Tensor:
    """Round to powers of two, by adding to the exponent in the bits of a float32."""
    bits = x.to(torch.float32).contiguous().view(torch.int32)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    if round_mode == "up":
        more = mantissa > 0
    elif round_mode == "nearest":
        more = (mantissa > 0x400000) | ((mantissa == 0x400000) & (exponent > 0))
    elif round_mode == "down":
        more = torch.zeros_like(bits, dtype=torch.bool)
    else:
        raise UnsupportedModel(f"round_mode is {round_mode!r}", remedy="use up, down or nearest")
    more = more & (exponent < (0xFE if saturate else 0xFF))
    return (exponent + more).to(torch.uint8).view(torch.float8_e8m0fnu)


@lower("BitCast")
def bit_cast(x: Tensor, *, to: DType, output_type: int = 0, input_types: tuple[int, ...] = ()) -> Tensor:
    """Return the numbers that the bits of x are in another type of the same width."""
    target, source = ir.DataType(output_type), ir.DataType(input_types[0] if input_types else 0)
    if target not in _SMALL:
        return x.view(to)
    bits = target.bitwidth
    code = _code(x) if source is ir.DataType.FLOAT4E2M1 else x.to(torch.int64) & ((1 << bits) - 1)
    if target is ir.DataType.FLOAT4E2M1:
        return torch.tensor(_FLOAT4, device=x.device)[code].to(to)
    return _extended(code, bits, target in _SIGNED).to(to)


_FLOAT4: Final = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def _code(x: Tensor) -> Tensor:
    """Return the four bits of float4 numbers."""
    size = x.to(torch.float32)
    magnitude = torch.searchsorted(torch.tensor(_FLOAT4[:8], device=x.device), size.abs())
    return magnitude | (torch.signbit(size).to(torch.int64) << 3)
