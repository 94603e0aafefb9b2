"""The nodes that encode a cache, and decode it.

Scales of channels are divided by and multiplied with, for QuantizeLinear has none that vary along two axes; a scale for
the whole cache is its own. Codes that were decoded are encoded to the same codes again: rounding makes good what the
product lost.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.coded import MIDDLE, NIBBLE, TYPES, levels, shape_of_codes
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer

FLOAT: Final = ir.DataType.FLOAT


class Chain:
    """Nodes that encode or decode the cache that comes in as `past`, one behind the other; not in a graph yet."""

    def __init__(self, graph: ir.Graph, names: Names, past: ir.Value, steps: ir.Value, bits: int) -> None:
        assert past.dtype is not None and past.shape is not None
        self.nodes: list[ir.Node] = []
        self._graph, self._names = graph, names
        self._prefix = past.name or ""
        self._steps, self._bits = steps, bits
        self._whole = bits == 8 and len(steps.shape or ()) < 2  # one scale, which QuantizeLinear takes
        self._dtype, self._rank, self._width = past.dtype, len(past.shape), past.shape[-1]

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, shape: ir.Shape | None, **attributes: int
    ) -> ir.Value:
        """Return the output of a new node."""
        name = self._names.free(f"{self._prefix}.{op_type}")
        node = ir.node(op_type, inputs, attributes, name=name)
        output = node.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(dtype), shape
        self.nodes.append(node)
        return output

    def encode(self, value: ir.Value) -> ir.Value:
        """Return the codes of floats."""
        shape = value.shape
        given = value if self._dtype == FLOAT else self.node("Cast", [value], FLOAT, shape, to=int(FLOAT))
        steps = given if self._whole else self.node("Div", [given, self._steps], FLOAT, shape)
        codes = self._rounded(steps) if self._bits == 8 else self._packed(steps, self.halved(shape))
        codes.name = self._names.free(f"{value.name}.codes")
        return codes

    def decode(self, codes: ir.Value, name: str | None, shape: ir.Shape | None = None) -> ir.Value:
        """Return what codes stand for."""
        steps = self._restored(codes, shape) if self._bits == 8 else self._unpacked(codes, shape)
        value = steps if self._whole else self.node("Mul", [steps, self._steps], FLOAT, shape)
        if self._dtype != FLOAT:
            value = self.node("Cast", [value], self._dtype, shape, to=int(self._dtype))
        value.name = name
        return value

    def halved(self, shape: ir.Shape | None) -> ir.Shape | None:
        """Return the shape of codes for a shape of floats."""
        return None if shape is None else shape_of_codes(list(shape), self._bits)

    def _rounded(self, steps: ir.Value) -> ir.Value:
        return self.node("QuantizeLinear", [steps, *self._grid()], TYPES[8], steps.shape)

    def _restored(self, codes: ir.Value, shape: ir.Shape | None) -> ir.Value:
        return self.node("DequantizeLinear", [codes, *self._grid()], FLOAT, shape)

    def _grid(self) -> tuple[ir.Value, ir.Value]:
        if self._whole:
            return self._steps, self._number("zero", np.zeros(1, np.int8))
        return self._number("one", np.float32(1)), self._number("zero", np.int8(0))

    def _packed(self, steps: ir.Value, halves: ir.Shape | None) -> ir.Value:
        """Return whole numbers two to a byte, the even entry in the low half."""
        most, shape = levels(4), steps.shape
        whole = self.node("Round", [steps], FLOAT, shape)
        bounds = self._number("low", np.float32(-most - 1)), self._number("high", np.float32(most))
        inside = self.node("Clip", [whole, *bounds], FLOAT, shape)
        shifted = self.node("Add", [inside, self._number("middle", np.float32(MIDDLE))], FLOAT, shape)
        even, odd = (self._every_other(shifted, start, halves) for start in (0, 1))
        high = self.node("Mul", [odd, self._number("nibble", np.float32(NIBBLE))], FLOAT, halves)
        both = self.node("Add", [even, high], FLOAT, halves)
        return self.node("Cast", [both], TYPES[4], halves, to=int(TYPES[4]))

    def _every_other(self, value: ir.Value, start: int, shape: ir.Shape | None) -> ir.Value:
        numbers = {"start": start, "end": np.iinfo(np.int64).max, "axis": -1, "stride": 2}
        operands = [self._number(name, np.array([number], np.int64)) for name, number in numbers.items()]
        return self.node("Slice", [value, *operands], FLOAT, shape)

    def _unpacked(self, codes: ir.Value, shape: ir.Shape | None) -> ir.Value:
        """Return the whole numbers that are packed two to a byte."""
        halves = codes.shape
        both = self.node("Cast", [codes], FLOAT, halves, to=int(FLOAT))
        share = self.node("Mul", [both, self._number("sixteenth", np.float32(1 / NIBBLE))], FLOAT, halves)
        high = self.node("Floor", [share], FLOAT, halves)
        shifted = self.node("Mul", [high, self._number("nibble", np.float32(NIBBLE))], FLOAT, halves)
        low = self.node("Sub", [both, shifted], FLOAT, halves)
        last = self._number("last", np.array([-1], np.int64))
        pairs = [self.node("Unsqueeze", [half, last], FLOAT, None) for half in (low, high)]
        joined = self.node("Concat", pairs, FLOAT, None, axis=-1)
        sizes = np.array([0] * (self._rank - 1) + [self._width], np.int64)
        flat = self.node("Reshape", [joined, self._number("shape", sizes)], FLOAT, shape)
        return self.node("Sub", [flat, self._number("middle", np.float32(MIDDLE))], FLOAT, shape)

    def _number(self, name: str, array: Any) -> ir.Value:
        tensor = ir.tensor(np.asarray(array))
        return add_initializer(self._graph, f"{self._prefix}.{name}", tensor, self._names)
