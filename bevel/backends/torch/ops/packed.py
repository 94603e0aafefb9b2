"""Weights quantized in blocks and packed into bytes: restored, then used as any others.

Scales and biases learn; the integers do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel

MICROSOFT: Final = "com.microsoft"
BITS: Final = (2, 4, 8)
FLOAT4_HALF: Final = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
NORMAL4: Final = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The levels of bitsandbytes: of its 4-bit float those that are not negative, and those of its normal float."""


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the entries of bytes along the last axis, those in the low bits first.

    >>> unpack(torch.tensor([0x21, 0x43], dtype=torch.uint8), 4).tolist()
    [1, 2, 3, 4]
    """
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    entries: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return entries.flatten(-2)


def packed_otherwise(attributes: Mapping[str, Any], name: str = "bits") -> str:
    """Say why packed weights cannot be read, if they cannot."""
    bits = attributes.get(name, 4)
    if bits not in BITS:
        return f"its weights have {bits} bits"
    return "its weights are packed for one device" if attributes.get("weight_prepacked", 0) else ""


def zero_points(zeros: Tensor | None, scales: Tensor, bits: int) -> Tensor | float:
    """Return zero points as `scales` are laid out: packed or floats, or the middle of the range."""
    if zeros is None:
        return float(2 ** (bits - 1))
    if zeros.dtype is not torch.uint8:
        return zeros.reshape(scales.shape)
    return unpack(zeros.reshape(*scales.shape[:-1], -1), bits)[..., : scales.shape[-1]].to(scales.dtype)


@lower("MatMulNBits", domain=MICROSOFT, refuses=packed_otherwise)
def matmul_nbits(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Tensor:
    """Multiply with rows of packed blocks, in the precision of the scales whatever less would be allowed."""
    if g_idx is not None:
        raise UnsupportedModel("its columns are grouped by an index", where="MatMulNBits")
    scales = scales.reshape(N, -1)
    entries = unpack(weight.reshape(N, scales.shape[1], -1), bits).to(scales.dtype)
    zero = zero_points(zeros, scales, bits)
    zero = zero.unsqueeze(-1) if isinstance(zero, Tensor) else zero
    restored = ((entries - zero) * scales.unsqueeze(-1)).flatten(1)[:, :K]
    return F.linear(x, restored.to(x.dtype), bias)


def _untransposed(attributes: Mapping[str, Any]) -> str:
    return "" if attributes.get("transB", 1) else "its weight is not transposed"


@lower("MatMulBnb4", domain=MICROSOFT, refuses=_untransposed)
def matmul_bnb4(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    *,
    K: int,
    N: int,
    block_size: int,
    quant_type: int,
    training_mode: int = 0,
    transB: int = 1,
) -> Tensor:
    """Multiply with a weight of levels of bitsandbytes, in blocks of the flat weight; high bits come first."""
    levels = NORMAL4 if quant_type else (*FLOAT4_HALF, *(-level for level in FLOAT4_HALF))
    codes = torch.stack([weight >> 4, weight & 15], -1).flatten()
    entries = torch.tensor(levels, dtype=scales.dtype, device=x.device)[codes.long()]
    restored = entries[: N * K] * scales.repeat_interleave(block_size)[: N * K]
    return F.linear(x, restored.reshape(N, K).to(x.dtype))


@lower("GatherBlockQuantized", domain=MICROSOFT, refuses=packed_otherwise)
def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
    input_types: tuple[int, ...],
) -> Tensor:
    """Take entries of one axis by value and restore them block by block along another."""
    gathered, quantized = gather_axis % data.dim(), quantize_axis % data.dim()
    if gathered == quantized:
        raise UnsupportedModel("it takes entries along the axis of its blocks", where="GatherBlockQuantized")
    packed = input_types[0] == ir.DataType.UINT8
    entries = unpack(_taken(data, indices, gathered), bits) if packed else _taken(data, indices, gathered)
    factor = _taken(scales, indices, gathered)
    along = quantized if quantized < gathered else quantized + indices.dim() - 1
    if zeros is None:
        zero: Any = 2 ** (bits - 1) if packed else 0
    else:
        zero = _taken(zeros, indices, gathered)
        zero = unpack(zero, bits)[..., : factor.shape[-1]] if packed else zero
        zero = _stretched(zero.to(scales.dtype), entries, along, block_size)
    centred: Tensor = entries.to(scales.dtype) - zero
    return centred * _stretched(factor, entries, along, block_size)


def _taken(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Take entries of an axis, in place of which come the axes of the indices; negative ones count from the end."""
    if x.shape[axis] == 1:
        indices = torch.zeros_like(indices)
    return x[(slice(None),) * axis + (indices,)]


def _stretched(scale: Tensor, entries: Tensor, axis: int, block: int) -> Tensor:
    return scale.repeat_interleave(block, axis).narrow(axis, 0, entries.shape[axis])
