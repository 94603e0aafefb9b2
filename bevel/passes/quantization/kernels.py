"""The operators of ONNX Runtime that read quantized weights as they are: products and gathered rows.

Products run with activations rounded to 8 bits block by block (accuracy level 4): anything else is slow. That moves an
activation by at most 1/254 of the largest of its block. Measured with ONNX Runtime 1.31 on a processor with AVX-512;
2 bits in blocks of 16 or 256 are slow there, so they are kept in 4 bits, or with each scale twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.fitting.layers import BIAS, GEMM, MATMUL
from bevel.passes.formats import Format, Quantized
from bevel.passes.formats.blocks import Axis
from bevel.passes.formats.packing import pack
from bevel.passes.quantization.forms import BYTE, CODES, SCALE, ZERO, Form, Layout, Whole, put, reader, rows, whole
from bevel.passes.quantization.targets import GATHER, Target

Array = np.ndarray[Any, Any]

MICROSOFT: Final = "com.microsoft"
WIDTHS: Final = (2, 4, 8)
BLOCKS: Final = (256, 128, 64, 32, 16)
# What a block as long as the axis is cut into, its scale repeated.
CUT: Final = 128
ACCURACY: Final = 4


@dataclass(frozen=True, eq=False)
class Kernel(Form):
    """Rows of packed blocks with a scale for each: `[outputs, blocks, bytes]`, or `[rows, bytes]` of a table."""

    whole: Whole = field(kw_only=True)
    piece: int = field(kw_only=True)

    @property
    def outputs(self) -> int:
        """How many rows there are."""
        return self.target.matrix_shape[1 - self.target.in_axis]

    @property
    def inputs(self) -> int:
        """How many entries a row has."""
        return self.target.matrix_shape[self.target.in_axis]

    @property
    def pieces(self) -> int:
        """How many blocks a row has."""
        return -(-self.inputs // self.piece)

    @property
    def layout(self) -> Layout:
        """Codes, scales and, where the format has them, zero points."""
        each = BYTE // self.whole.bits
        found = {
            CODES: ((self.outputs, *self._row(each)), ir.DataType.UINT8),
            SCALE: ((self.outputs, self.pieces), ir.DataType.FLOAT),
        }
        if self.format.zero_bits:
            found[ZERO] = ((self.outputs, -(-self.pieces // each)), ir.DataType.UINT8)
        return found

    def _row(self, each: int) -> tuple[int, ...]:
        return self.pieces, self.piece // each

    def arrays(self, quantized: Quantized) -> dict[str, Array]:
        """Return codes packed along the inputs, and scales and zero points by output."""
        arrays = {CODES: self._packed(quantized.codes), SCALE: self._by_piece(quantized, quantized.scale)}
        if self.whole.factor != 1:
            arrays[SCALE] /= np.float32(self.whole.factor)
        if quantized.zero is not None:
            arrays[ZERO] = pack(self._by_piece(quantized, quantized.zero), self.whole.bits)
        return arrays

    def _packed(self, codes: Array) -> Array:
        stored = codes if self.whole.plain else self.whole.stored[codes]
        if missing := self._length - self.inputs:
            stored = np.pad(stored, [(0, missing) if axis == self.target.in_axis else (0, 0) for axis in (0, 1)])
        by_output = stored if self.target.in_axis else stored.T
        return pack(by_output, self.whole.bits).reshape(self.layout[CODES][0])

    @property
    def _length(self) -> int:
        return self.pieces * self.piece

    def _by_piece(self, quantized: Quantized, array: Array) -> Array:
        """Return one entry for each piece; a block may have several."""
        found = rows(quantized, array)
        times = self.pieces if found.shape[1] == 1 else quantized.block // self.piece
        return np.ascontiguousarray((found if times == 1 else np.repeat(found, times, axis=1))[:, : self.pieces])


@dataclass(frozen=True, eq=False)
class Product(Kernel):
    """MatMulNBits in place of MatMul or Gemm."""

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Multiply with the packed rows; the bias of a Gemm goes along."""
        node, layer = self.target.node, self.target.layer
        bias = layer.bias if layer is not None and node.op_type == GEMM else None
        inputs = [node.inputs[0], values[CODES], values[SCALE], values.get(ZERO), None, bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {"K": self.inputs, "N": self.outputs, "bits": self.whole.bits}
        attributes |= {"block_size": self.piece, "accuracy_level": ACCURACY}
        model.opset_imports.setdefault(MICROSOFT, 1)
        reader(self, "MatMulNBits", MICROSOFT, inputs, attributes)


@dataclass(frozen=True, eq=False)
class Lookup(Kernel):
    """GatherBlockQuantized in place of Gather."""

    def _row(self, each: int) -> tuple[int, ...]:
        return (self.inputs // each,)

    @property
    def _length(self) -> int:
        return self.inputs

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Take rows of bytes and restore them."""
        inputs = [values[CODES], self.target.node.inputs[1], values[SCALE]]
        inputs += [values[ZERO]] if ZERO in values else []
        attributes = {"bits": self.whole.bits, "block_size": self.piece, "gather_axis": 0, "quantize_axis": 1}
        model.opset_imports.setdefault(MICROSOFT, 1)
        reader(self, "GatherBlockQuantized", MICROSOFT, inputs, attributes)


@dataclass(frozen=True, eq=False)
class Shared(Form):
    """One weight for several kernels, stored once: what a product reads of a table is the same bytes in blocks."""

    kernels: tuple[Kernel, ...] = field(kw_only=True)

    @property
    def layout(self) -> Layout:
        """The tensors of the first."""
        return self.kernels[0].layout

    def arrays(self, quantized: Quantized) -> dict[str, Array]:
        """Return the tensors of the first."""
        return self.kernels[0].arrays(quantized)

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Let every kernel read the tensors, in its own shape; ONNX Runtime computes that once, when it loads."""
        for each in self.kernels:
            shape, node = each.layout[CODES][0], each.target.node
            codes = values[CODES]
            if shape != self.layout[CODES][0]:
                assert isinstance(node.graph, ir.Graph)
                sizes = ir.Tensor(np.array(shape, np.int64))
                wanted = add_initializer(node.graph, f"{self.target.name}.sizes", sizes, names)
                codes = put(node, "Reshape", [codes, wanted], f"{self.target.name}.blocks", names)
                codes.shape, codes.type = ir.Shape(shape), ir.TensorType(ir.DataType.UINT8)
            each.wire(model, {**values, CODES: codes}, names)


def kernel(target: Target, fmt: Format, axis: Axis, block: int) -> Kernel | Shared | str:
    """Return the kernel's form of a weight, or why there is none; all its readers have one, or none has."""
    found: list[Kernel] = []
    for one in (target, *target.others):
        each = _kernel(one, fmt, axis, block)
        if isinstance(each, str):
            return each
        found.append(each)
    if len(found) == 1:
        return found[0]
    if len({(each.piece, each.whole.bits) for each in found}) > 1:
        return "no kernels for its readers in the same blocks and bits"
    return Shared(target, fmt, axis, block, kernels=tuple(found))


def _kernel(target: Target, fmt: Format, axis: Axis, block: int) -> Kernel | str:
    if why := _objection(target):
        return why
    if axis != target.in_axis:
        return "no kernel has blocks that do not run along the inputs"
    inputs = target.matrix_shape[target.in_axis]
    piece = _piece(min(block or inputs, inputs), inputs)
    if piece is None:
        return f"no kernel has blocks of {block}"
    product = target.layer is not None
    numbers = whole(fmt, WIDTHS[1:] if product and piece == BLOCKS[-1] else WIDTHS)  # slow: 2 bits in blocks of 16
    if numbers is None:
        return f"no kernel has the levels of {fmt.name}"
    if product:
        piece = min(piece, CUT) if numbers.bits == WIDTHS[0] else piece  # slow: 2 bits in blocks of 256
        return Product(target, fmt, axis, block, whole=numbers, piece=piece)
    if inputs % max(piece, BYTE // numbers.bits):
        return f"no kernel has rows of {inputs} in blocks of {piece}"
    return Lookup(target, fmt, axis, block, whole=numbers, piece=piece)


def _piece(block: int, inputs: int) -> int | None:
    """Return how long the kernel's blocks are, whose scales are those of the blocks they lie in."""
    if block >= inputs:
        return next((size for size in reversed(BLOCKS) if size >= inputs), CUT) if inputs <= CUT else CUT
    return next((size for size in BLOCKS if block % size == 0), None)


def _objection(target: Target) -> str:
    """Say why no kernel can read a weight in the place it has, if so."""
    node = target.node
    if target.tensor.dtype is not ir.DataType.FLOAT:
        return f"no kernel for {target.tensor.dtype.name.lower()}"
    if node.op_type == GATHER:
        return ""
    if node.op_type not in (MATMUL, GEMM):
        return f"no kernel for {node.op_type}"
    data = node.inputs[0]
    if data is None or data.shape is None or len(data.shape) < 2:
        return "no kernel for what may be a vector"
    return "" if node.op_type == MATMUL or _plain_gemm(target) else "no kernel for such a Gemm"


def _plain_gemm(target: Target) -> bool:
    attributes = target.node.attributes
    if attributes.get_float("alpha", 1.0) != 1 or attributes.get_float("beta", 1.0) != 1 or target.layer is None:
        return False
    bias = target.node.inputs[BIAS] if len(target.node.inputs) > BIAS else None
    outputs = target.matrix_shape[1 - target.in_axis]
    return bias is None or (bias.shape is not None and list(bias.shape) == [outputs])
