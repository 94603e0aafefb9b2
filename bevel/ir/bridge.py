"""A linear map in the place of blocks that were dropped: `x + D x + b`, with a matrix or a diagonal `D`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.emit import Emitter

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Bridge:
    """What is added to a stream: `change @ x + shift`, with `change` `[channels, channels]`, or `[channels]`."""

    change: Array
    shift: Array

    def whole(self, emit: Emitter, stream: ir.Value, axis: int) -> ir.Value:
        """Insert what makes `x + D x + b` of a stream, in one product."""
        one = np.ones_like(self.change) if self.change.ndim == 1 else np.eye(len(self.change))
        return self._product(emit, stream, axis, one + self.change)

    def added(self, emit: Emitter, stream: ir.Value, axis: int) -> ir.Value:
        """Insert what makes `D x + b` of a stream."""
        return self._product(emit, stream, axis, self.change)

    def _product(self, emit: Emitter, stream: ir.Value, axis: int, matrix: Array) -> ir.Value:
        assert stream.shape is not None
        behind = (1,) * (len(stream.shape) - 1 - axis)
        shift = emit.constant("bias", self.shift.reshape(-1, *behind))
        if matrix.ndim == 1:
            product = emit("Mul", stream, emit.constant("weight", matrix.reshape(-1, *behind)))
        elif not behind:
            product = emit("MatMul", stream, emit.constant("weight", matrix.T))
        else:
            assert axis == 1, "convolutions have their channels there"
            product = emit("Conv", stream, emit.constant("weight", matrix.reshape(*matrix.shape, *behind)))
        return emit("Add", product, shift)
