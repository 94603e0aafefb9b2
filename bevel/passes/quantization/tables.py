"""Quantized weights as bytes that index a table of what they stand for, times scales: any format, standard operators.

Such a weight is small in the file. ONNX Runtime computes it once when it loads the model, so speed and memory are then
those of floats.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.formats import Quantized
from bevel.passes.formats.blocks import arrangement, extents, split, tile
from bevel.passes.formats.integers import Integers
from bevel.passes.formats.learned import Learned
from bevel.passes.formats.packing import planes, to_planes, unpack
from bevel.passes.quantization.forms import BYTE, CODES, SCALE, ZERO, Form, Layout, put

Array = np.ndarray[Any, Any]

# From this opset on, Slice takes its bounds as inputs.
SLICES: Final = 10
BASE: Final = "base"
LEVELS: Final = "levels"
BYTES: Final = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Tabled(Form):
    """Planes of codes, looked up, less zero points, times scales; then cut and shaped like the weight."""

    tables: MutableMapping[bytes, ir.Value] = field(kw_only=True)
    """The tables that the model has by now, by content."""

    @property
    def _blocks(self) -> tuple[int, int, int, int]:
        """How many there are before the axis, along it, in a block, and after it."""
        return arrangement(self.target.matrix_shape, self.axis, self.block)

    @property
    def _many(self) -> int:
        """How many codes there are, those that fill up the last blocks included."""
        return int(np.prod(self._blocks))

    @property
    def layout(self) -> Layout:
        """A byte for some codes, in planes; scales as floats or bytes; zero points as bytes.

        Planes are rows, for integers in a vector may be taken for a shape.
        """
        outer, blocks, _, inner = self._blocks
        each = outer, blocks, 1, inner
        widths, coded = planes(self.format.code_bits), self.format.scales(1.0) is not None
        found: dict[str, tuple[tuple[int, ...], ir.DataType]] = {
            self._plane(width): ((1, -(-self._many * width // BYTE)), ir.DataType.UINT8) for width in widths
        }
        found[SCALE] = each, ir.DataType.UINT8 if coded else ir.DataType.FLOAT
        if self.format.shares_factor:
            found[BASE] = (), ir.DataType.FLOAT
        if isinstance(self.format, Learned):
            found[LEVELS] = (len(self.format.levels),), ir.DataType.FLOAT
        if self.format.zero_bits:
            found[ZERO] = each, ir.DataType.UINT8
        return found

    def arrays(self, quantized: Quantized) -> dict[str, Array]:
        """Return planes of codes in whole blocks, scales and zero points."""
        codes = split(quantized.codes, self.axis, quantized.block).reshape(-1)
        widths = planes(self.format.code_bits)
        arrays = dict(zip(map(self._plane, widths), to_planes(codes, self.format.code_bits), strict=True))
        coded = quantized.scale_codes
        arrays[SCALE] = np.expand_dims(quantized.scale if coded is None else coded, 2)
        if self.format.shares_factor:
            arrays[BASE] = np.array(quantized.base, np.float32)
        if isinstance(self.format, Learned):
            arrays[LEVELS] = quantized.format.levels
        if quantized.zero is not None:
            arrays[ZERO] = np.expand_dims(quantized.zero, 2)
        return arrays

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Compute the weight in front of its first reader, for all of them."""
        _Wiring(self, model.graph, values, names).run()

    def _plane(self, width: int) -> str:
        return f"{CODES}{width}"


class _Wiring:
    """The nodes that restore one weight, while they are put in place."""

    def __init__(self, form: Tabled, graph: ir.Graph, values: Mapping[str, ir.Value], names: Names) -> None:
        self.form, self.graph, self.values, self.names = form, graph, values, names
        self.weight = form.target.weight
        self.before = min((use.node for use in self.weight.uses()), key=list(graph).index)

    def run(self) -> None:
        blocks = self.form._blocks
        found = self._shaped(self._levels(), blocks)
        if ZERO in self.values:
            found = self._node("Sub", found, self._cast(self.values[ZERO], ir.DataType.FLOAT))
        found = self._node("Mul", found, self._scale())
        found = self._shaped(self._joined(found, blocks), self.form.target.shape)
        kind = self.form.target.tensor.dtype
        found = found if kind is ir.DataType.FLOAT else self._cast(found, kind)
        found.shape, found.type = self.weight.shape, ir.TensorType(kind)
        ir.convenience.replace_all_uses_with(self.weight, found)

    def _joined(self, found: ir.Value, blocks: tuple[int, int, int, int]) -> ir.Value:
        """Return blocks as a matrix, or as one that has its shape once it is reshaped, without what fills them up."""
        shape, axis = self.form.target.matrix_shape, self.form.axis
        if axis == "both":
            high, wide = tile(shape, self.form.block)
            tiles = self._shaped(found, (*blocks[:2], high, wide))
            turned = put(self.before, "Transpose", [tiles], f"{self.form.target.name}.rows", self.names)
            node = turned.producer()
            assert node is not None
            node.attributes.add(ir.AttrInt64s("perm", [0, 2, 1, 3]))
            found = self._shaped(turned, (blocks[0] * high, blocks[1] * wide))
            return self._node("Slice", found, *map(self._integers, ((0, 0), shape, (0, 1))))
        outer, count, inner = extents(shape, axis)
        if blocks[1] * blocks[2] == count:
            return found
        found = self._shaped(found, (outer, blocks[1] * blocks[2], inner))
        return self._node("Slice", found, *map(self._integers, ((0,), (count,), (1,))))

    def _levels(self) -> ir.Value:
        """Return what the codes stand for, one after the other."""
        fmt, widths = self.form.format, planes(self.form.format.code_bits)
        if len(widths) == 1 and LEVELS not in self.values:
            return self._looked_up(widths[0], fmt.levels)
        found, shift = None, 0
        offset = 0.0 if not isinstance(fmt, Integers) else float(fmt.levels[0])
        for width in widths:
            numbers = np.arange(1 << width, dtype=np.float32) * np.float32(1 << shift) + np.float32(offset)
            plane = self._looked_up(width, numbers)
            found, shift, offset = plane if found is None else self._node("Add", found, plane), shift + width, 0.0
        assert found is not None
        if isinstance(fmt, Integers):
            return found
        levels = self.values[LEVELS] if LEVELS in self.values else self._table(fmt.levels)
        return self._node("Gather", levels, self._cast(found, ir.DataType.INT32))

    def _looked_up(self, width: int, numbers: Array) -> ir.Value:
        """Return the number of each code of one plane, as many as there are codes."""
        full = np.resize(numbers, 1 << width)  # a codebook may have fewer levels than there are codes
        table = self._table(full[unpack(BYTES[:, None], width, BYTE // width)])
        index = self._cast(self.values[self.form._plane(width)], ir.DataType.INT32)
        found = self._shaped(self._node("Gather", table, index), (-1,))
        if self.form._many % (BYTE // width):
            found = self._node("Slice", found, self._integers((0,)), self._integers((self.form._many,)))
        return found

    def _scale(self) -> ir.Value:
        known = self.form.format.scales(1.0)
        if known is None:
            return self.values[SCALE]
        scale = self._node("Gather", self._table(known), self._cast(self.values[SCALE], ir.DataType.INT32))
        return self._node("Mul", scale, self.values[BASE]) if BASE in self.values else scale

    def _table(self, array: Array) -> ir.Value:
        """Return a table; equal ones are one."""
        array = np.ascontiguousarray(array, np.float32)
        key = array.tobytes() + bytes(str(array.shape), "ascii")
        if key not in self.form.tables:
            self.form.tables[key] = add_initializer(self.graph, "levels", ir.Tensor(array), self.names)
        return self.form.tables[key]

    def _shaped(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        return self._node("Reshape", value, self._integers(shape))

    def _integers(self, numbers: tuple[int, ...]) -> ir.Value:
        tensor = ir.Tensor(np.array(numbers, np.int64))
        return add_initializer(self.graph, f"{self.form.target.name}.sizes", tensor, self.names)

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        return self._node("Cast", value, to=int(kind))

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = f"{self.form.target.name}.{op_type.lower()}"
        return put(self.before, op_type, inputs, name, self.names, **attributes)
