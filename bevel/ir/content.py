"""Read weights one at a time and let go of them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir


@contextmanager
def content(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """Give a tensor's array, and unmap its file afterwards: the array must not be kept."""
    try:
        yield tensor.numpy()
    finally:
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()


def recompute(value: ir.Value, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let an initializer hold what a function makes of its content, in double precision, when somebody asks for it."""
    source = value.const_value
    assert source is not None

    def computed() -> ir.TensorProtocol:
        with content(source) as array:
            result = function(np.array(array, np.float64))
        return ir.tensor(np.ascontiguousarray(result).astype(source.dtype.numpy()), name=value.name)

    shape = ir.Shape(source.shape.numpy())
    value.const_value = ir.LazyTensor(computed, dtype=source.dtype, shape=shape, name=value.name)
