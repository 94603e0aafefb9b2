"""What is written for a cache in codes: what encodes it where it comes in, and decodes it where it goes out.

Scales are divided by and multiplied with, for QuantizeLinear has none that vary along two axes. Codes that were decoded
are encoded to the same codes again: rounding makes good what the product lost. So new entries alone are encoded where a
node does nothing but append them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.caches import Cache
from bevel.ir.coded import MIDDLE, NIBBLE, TYPES, Coded, coded, levels, set_coded, shape_of_codes
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer

Array = np.ndarray[Any, Any]

FLOAT: Final = ir.DataType.FLOAT
KEY_SCALE, VALUE_SCALE = 12, 13
"""Operands of GroupQueryAttention."""


def write(
    model: ir.Model, found: Iterable[Cache], scales: Mapping[str, Array], bits: int, fast: Collection[ir.Node]
) -> None:
    """Have codes inside the model for some of its caches, and note them in its metadata; the interface stays floats.

    Nodes that are `fast` read and give out codes themselves.
    """
    writer = _Writer(model, bits, fast)
    set_coded(model, [*coded(model), *(writer.cache(cache, scales[cache.name]) for cache in found)])


class _Writer:
    def __init__(self, model: ir.Model, bits: int, fast: Collection[ir.Node]) -> None:
        self.graph = model.graph
        self.names = Names(model)
        self.bits = bits
        self.fast = fast
        self.first = model.graph[0]

    def cache(self, cache: Cache, scale: Array) -> Coded:
        steps, name = self._constant(f"{cache.name}.scale", scale), cache.present.name or ""
        past = self._take_in(cache, steps)
        present = self._give_out(cache, steps, past)
        return Coded(cache.name, name, self.bits, scale, (past.name or "", present.name or ""))

    def _take_in(self, cache: Cache, steps: ir.Value) -> ir.Value:
        """Encode the input, and let its readers read the codes, decoded where they ask for more than the shape."""
        readers = list(cache.past.uses())
        chain = _Chain(self, cache.past, steps)
        codes = chain.encode(cache.past)
        decoded: ir.Value | None = None
        for node, index in readers:
            if node in self.fast and node is cache.node:
                self._attend_to_codes(node, index, codes, steps)
            elif self.bits == 8 and node.op_type == "Shape" and not node.domain:
                node.replace_input_with(index, codes)
            else:
                decoded = decoded or chain.decode(codes, f"{cache.name}.decoded")
                node.replace_input_with(index, decoded)
        self.graph.insert_before(self.first, chain.nodes)
        return codes

    def _attend_to_codes(self, node: ir.Node, index: int, codes: ir.Value, steps: ir.Value) -> None:
        """Have GroupQueryAttention read codes: keys and values have an operand each for their scales."""
        node.replace_input_with(index, codes)
        letter, place = ("k", KEY_SCALE) if index == 3 else ("v", VALUE_SCALE)
        node.resize_inputs(max(len(node.inputs), place + 1))
        node.replace_input_with(place, steps)
        each = "PER_CHANNEL" if len(steps.shape or ()) > 1 else "PER_TENSOR"
        node.attributes.add(ir.AttrString(f"{letter}_quant_type", each))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", self.bits))

    def _give_out(self, cache: Cache, steps: ir.Value, past: ir.Value) -> ir.Value:
        """Return the codes of the output, which gives out what they stand for."""
        present, name = cache.present, cache.present.name
        maker = present.producer()
        assert maker is not None
        chain = _Chain(self, cache.past, steps)
        if cache.node in self.fast:
            readers, shape = list(present.uses()), present.shape
            present.name, present.type = self.names.free(f"{name}.codes"), ir.TensorType(TYPES[self.bits])
            present.shape = None if shape is None else shape_of_codes(list(shape), self.bits)
            codes, decoded = present, chain.decode(present, name, shape)
            for node, index in readers:
                node.replace_input_with(index, decoded)
        else:
            present.name = self.names.free(f"{name}.float")
            codes = self._appended(cache, chain, past) if cache.appended else chain.encode(present)
            codes.name = self.names.free(f"{name}.codes")
            decoded = chain.decode(codes, name, present.shape)
        self.graph.outputs[:] = [decoded if value is present else value for value in self.graph.outputs]
        self.graph.insert_after(maker, chain.nodes)
        return codes

    def _appended(self, cache: Cache, chain: "_Chain", past: ir.Value) -> ir.Value:
        """Return codes with those of new entries appended."""
        parts = [
            past if index == cache.operand else chain.encode(value)
            for index, value in enumerate(cache.node.inputs)
            if value is not None
        ]
        shape = cache.present.shape
        coded_shape = None if shape is None else shape_of_codes(list(shape), self.bits)
        return chain.node("Concat", parts, TYPES[self.bits], coded_shape, axis=cache.positions)

    def _constant(self, name: str, array: Array) -> ir.Value:
        return add_initializer(self.graph, name, ir.tensor(array), self.names)


class _Chain:
    """Nodes that encode or decode one cache, one behind the other; not in a graph yet."""

    def __init__(self, writer: _Writer, past: ir.Value, steps: ir.Value) -> None:
        assert past.dtype is not None and past.shape is not None
        self.nodes: list[ir.Node] = []
        self._writer = writer
        self._prefix = past.name or ""
        self._steps = steps
        self._dtype = past.dtype
        self._rank = len(past.shape)
        self._width = past.shape[-1]

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, shape: ir.Shape | None, **attributes: int
    ) -> ir.Value:
        """Return the output of a new node."""
        name = self._writer.names.free(f"{self._prefix}.{op_type}")
        node = ir.node(op_type, inputs, attributes, name=name)
        output = node.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(dtype), shape
        self.nodes.append(node)
        return output

    def encode(self, value: ir.Value) -> ir.Value:
        """Return the codes of floats."""
        bits, shape = self._writer.bits, value.shape
        given = value if self._dtype == FLOAT else self.node("Cast", [value], FLOAT, shape, to=int(FLOAT))
        steps = self.node("Div", [given, self._steps], FLOAT, shape)
        coded_shape = None if shape is None else shape_of_codes(list(shape), bits)
        if bits == 8:
            grid = self._number("one", np.float32(1)), self._number("zero", np.int8(0))
            codes = self.node("QuantizeLinear", [steps, *grid], TYPES[8], coded_shape)
        else:
            codes = self._packed(steps, shape, coded_shape)
        codes.name = self._writer.names.free(f"{value.name}.codes")
        return codes

    def decode(self, codes: ir.Value, name: str | None, shape: ir.Shape | None = None) -> ir.Value:
        """Return what codes stand for."""
        if self._writer.bits == 8:
            grid = self._number("one", np.float32(1)), self._number("zero", np.int8(0))
            steps = self.node("DequantizeLinear", [codes, *grid], FLOAT, shape)
        else:
            steps = self._unpacked(codes, shape)
        value = self.node("Mul", [steps, self._steps], FLOAT, shape)
        if self._dtype != FLOAT:
            value = self.node("Cast", [value], self._dtype, shape, to=int(self._dtype))
        value.name = name
        return value

    def _packed(self, steps: ir.Value, shape: ir.Shape | None, coded_shape: ir.Shape | None) -> ir.Value:
        """Return whole numbers two to a byte, the even entry in the low half."""
        most = levels(4)
        whole = self.node("Round", [steps], FLOAT, shape)
        bounds = self._number("low", np.float32(-most - 1)), self._number("high", np.float32(most))
        inside = self.node("Clip", [whole, *bounds], FLOAT, shape)
        shifted = self.node("Add", [inside, self._number("middle", np.float32(MIDDLE))], FLOAT, shape)
        even, odd = (self._every_other(shifted, start, coded_shape) for start in (0, 1))
        high = self.node("Mul", [odd, self._number("nibble", np.float32(NIBBLE))], FLOAT, coded_shape)
        both = self.node("Add", [even, high], FLOAT, coded_shape)
        return self.node("Cast", [both], TYPES[4], coded_shape, to=int(TYPES[4]))

    def _every_other(self, value: ir.Value, start: int, shape: ir.Shape | None) -> ir.Value:
        numbers = (start, np.iinfo(np.int64).max, -1, 2)
        operands = [self._number(f"slice{number}", np.array([number], np.int64)) for number in numbers]
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
        return self._writer._constant(f"{self._prefix}.{name}", np.asarray(array))
