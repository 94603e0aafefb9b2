"""Torch tensors as the tensors of a graph: not copied, read only when asked for, and never written to."""

from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

ELEMENT_TYPES: Final = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    torch.float8_e4m3fnuz: ir.DataType.FLOAT8E4M3FNUZ,
    torch.float8_e5m2: ir.DataType.FLOAT8E5M2,
    torch.float8_e5m2fnuz: ir.DataType.FLOAT8E5M2FNUZ,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int16: ir.DataType.INT16,
    torch.int8: ir.DataType.INT8,
    torch.uint64: ir.DataType.UINT64,
    torch.uint32: ir.DataType.UINT32,
    torch.uint16: ir.DataType.UINT16,
    torch.uint8: ir.DataType.UINT8,
    torch.bool: ir.DataType.BOOL,
    torch.complex64: ir.DataType.COMPLEX64,
    torch.complex128: ir.DataType.COMPLEX128,
}
# Types that torch and numpy exchange only by their bits.
BITS: Final = {
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e4m3fnuz: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.float8_e5m2fnuz: torch.uint8,
}


def shared(tensor: Tensor, name: str) -> ir.TensorProtocol:
    """Wrap a torch tensor as one of a graph; both see the same memory, where the device allows it.

    A module that is moved or converted later lets go of that memory, and the graph keeps it.
    """
    dtype, tensor = ELEMENT_TYPES[tensor.dtype], tensor.detach()

    def read() -> ir.TensorProtocol:
        return ir.Tensor(as_array(tensor), dtype=dtype, name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(tuple(tensor.shape)), name=name)


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a view of a tensor's content that cannot be written to."""
    bits = tensor.detach().view(BITS[tensor.dtype]) if tensor.dtype in BITS else tensor.detach()
    array: np.ndarray[Any, Any] = bits.numpy(force=True).view(ELEMENT_TYPES[tensor.dtype].numpy())
    array.flags.writeable = False
    return array
