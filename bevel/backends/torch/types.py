"""ONNX element types as torch types, and arrays as tensors and back.

Torch has no 2-bit and 4-bit types: their values are held one a byte, integers as int8 or uint8 and float4 as float8.
Strings are numpy arrays of objects.
"""

from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

Array = np.ndarray[Any, Any]

TORCH_TYPES: Final = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
    ir.DataType.FLOAT4E2M1: torch.float8_e4m3fn,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
}
# Types that torch and numpy exchange only by their bits.
_BITS: Final = {2: torch.int16, 1: torch.uint8}


def torch_type(element_type: int) -> torch.dtype:
    """Return the torch type that holds an ONNX element type."""
    return TORCH_TYPES[ir.DataType(element_type)]


def to_tensor(array: Array, element_type: int | None = None) -> torch.Tensor:
    """Return a tensor with its own copy of an array, as torch holds the ONNX element type (by default the array's)."""
    kind = ir.DataType.from_numpy(array.dtype) if element_type is None else ir.DataType(element_type)
    target = TORCH_TYPES[kind]
    if array.dtype.kind in "biufc" and array.dtype.type.__module__ == "numpy":
        return torch.tensor(np.array(array, order="C")).to(target)
    if kind.bitwidth < 8:
        whole = array.astype(ml_dtypes.float8_e4m3fn if kind is ir.DataType.FLOAT4E2M1 else np.int8)
        if kind is not ir.DataType.FLOAT4E2M1:
            return torch.tensor(whole).to(target)
        array = whole
    bits = np.array(array, order="C").view(np.int16 if array.itemsize == 2 else np.uint8)
    return torch.tensor(bits).view(target)


def to_array(tensor: torch.Tensor, element_type: int | None = None) -> Array:
    """Return the content of a tensor as an array of an ONNX element type (by default the tensor's own)."""
    tensor = tensor.detach().cpu().resolve_conj()
    own = next(kind for kind, dtype in TORCH_TYPES.items() if dtype is tensor.dtype)
    kind = own if element_type is None else ir.DataType(element_type)
    if own.numpy().type.__module__ == "numpy":
        return tensor.numpy().astype(kind.numpy(), copy=False)
    array: Array = tensor.contiguous().view(_BITS[tensor.element_size()]).numpy().view(own.numpy())
    return array.astype(kind.numpy(), copy=False)
