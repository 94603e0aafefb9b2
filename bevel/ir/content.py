"""Read weights one at a time and let go of them again."""

from __future__ import annotations

from collections.abc import Iterator
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
