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
    if isinstance(source, _Recomputed):
        value.const_value = _Recomputed(source.base, (*source.steps, function), value.name)
    else:
        value.const_value = _Recomputed(source, (function,), value.name)


class _Recomputed(ir.LazyTensor):
    """What several functions in turn make of a tensor: one after the other, however many, and rounded once."""

    __slots__ = ("base", "steps")

    def __init__(
        self, base: ir.TensorProtocol, steps: tuple[Callable[[np.ndarray], np.ndarray], ...], name: str | None
    ) -> None:
        self.base, self.steps = base, steps
        super().__init__(self._computed, dtype=base.dtype, shape=ir.Shape(base.shape.numpy()), name=name)

    def _computed(self) -> ir.TensorProtocol:
        with content(self.base) as array:
            result = np.array(array, np.float64)
            for step in self.steps:
                result = step(result)
        return ir.tensor(np.ascontiguousarray(result).astype(self.dtype.numpy()), name=self.name)
