"""Quantized weights in front of MatMul and Gemm, read by the standard operator DequantizeLinear."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.passes.fitting.layers import GEMM, MATMUL, WEIGHT
from bevel.passes.formats import Format, Quantized
from bevel.passes.formats.blocks import Axis
from bevel.passes.formats.integers import BlockFloat, Integers
from bevel.passes.formats.packing import pack
from bevel.passes.quantization.forms import CODES, SCALE, ZERO, Form, Layout, put, rows
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]

# From this opset on, DequantizeLinear has blocks and 4 bits.
BLOCKED: Final = 21
PIECES: Final = (16, 32, 64, 128, 256)
"""The blocks in which ONNX Runtime multiplies with what DequantizeLinear would give, without computing that."""

TYPES: Final = {
    (4, True): ir.DataType.UINT4,
    (4, False): ir.DataType.INT4,
    (8, True): ir.DataType.UINT8,
    (8, False): ir.DataType.INT8,
}


@dataclass(frozen=True, eq=False)
class Dequantized(Form):
    """DequantizeLinear in front of a MatMul or Gemm, its weight stored `[inputs, outputs]`.

    ONNX Runtime multiplies with this as fast as with its own operator, but only in this layout.
    """

    @property
    def _shape(self) -> tuple[int, int]:
        size = self.target.matrix_shape
        return size[self.target.in_axis], size[1 - self.target.in_axis]

    @property
    def _kind(self) -> ir.DataType:
        return TYPES[self.format.code_bits, self.format.zero_bits > 0]

    @property
    def _whole(self) -> bool:
        """Whether a block is a whole column."""
        return not self.block or self.block >= self._shape[0]

    @property
    def layout(self) -> Layout:
        """Codes, scales and zero points, if the format has them, of the same type as codes."""
        inputs, outputs = self._shape
        blocks = (outputs,) if self._whole else (-(-inputs // self.block), outputs)
        found = {CODES: (self._shape, self._kind), SCALE: (blocks, ir.DataType.FLOAT)}
        return found | ({ZERO: (blocks, self._kind)} if self.format.zero_bits else {})

    def arrays(self, quantized: Quantized) -> dict[str, Array]:
        """Return codes by input, and scales and zero points by block."""
        codes = quantized.codes.T if self.target.in_axis else quantized.codes
        if not self.format.zero_bits:  # two's complement is the code less the middle, in so many bits
            codes = codes ^ np.uint8(1 << (self.format.code_bits - 1))
        arrays = {CODES: self._packed(codes), SCALE: np.ascontiguousarray(rows(quantized, quantized.scale).T)}
        if quantized.zero is not None:
            arrays[ZERO] = self._packed(rows(quantized, quantized.zero).T)
        return arrays

    def _packed(self, codes: Array) -> Array:
        return pack(np.ascontiguousarray(codes).reshape(-1), self.format.code_bits)

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Dequantize in front of the reader."""
        node = self.target.node
        attributes = {"axis": 1} if self._whole else {"axis": 0, "block_size": self.block}
        inputs = [values[part] for part in (CODES, SCALE, ZERO) if part in values]
        decoded = put(node, "DequantizeLinear", inputs, f"{self.target.name}.restored", names, **attributes)
        decoded.shape, decoded.type = ir.Shape(self._shape), ir.TensorType(ir.DataType.FLOAT)
        node.replace_input_with(WEIGHT, decoded)
        if node.op_type == GEMM:
            node.attributes.pop("transB", None)


def dequantized(target: Target, fmt: Format, axis: Axis, block: int, opset: int) -> Dequantized | str:
    """Return a weight in front of DequantizeLinear, or why not: it would not be exact, as small, or fast."""
    node = target.node
    if target.others:
        return "nothing fuses DequantizeLinear for several readers"
    if node.op_type not in (MATMUL, GEMM):
        return f"nothing fuses DequantizeLinear with {node.op_type}"
    if opset < BLOCKED:
        return f"opset {opset} has no DequantizeLinear in blocks; {BLOCKED} has"
    if not isinstance(fmt, Integers) or isinstance(fmt, BlockFloat) or (fmt.code_bits, fmt.zero_bits > 0) not in TYPES:
        return f"DequantizeLinear has no {fmt.name}"
    whole = not block or block >= target.matrix_shape[target.in_axis]
    if axis != target.in_axis or not (whole or block in PIECES) or target.tensor.dtype is not ir.DataType.FLOAT:
        return "nothing fuses DequantizeLinear in such blocks"
    return Dequantized(target, fmt, axis, block)
