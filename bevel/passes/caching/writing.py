"""Codes of caches inside a model: encoded where they come in, decoded where they go out; the interface stays floats.

What a node does with floats in between, and what it reads of codes itself, is the question of each cache. Where a node
does nothing but append new entries, they alone are encoded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.caches import Cache
from bevel.ir.coded import TYPES, Coded, coded, set_coded
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.caching.chains import Chain

Array = np.ndarray[Any, Any]

# Of GroupQueryAttention: the letter and the operand of the scale, by the operand of the cache.
SCALES: Final = {3: ("k", 12), 4: ("v", 13)}
WIDTH: Final = "kv_cache_bit_width"
CODED_ONLY: Final = frozenset({WIDTH, *(f"{letter}_quant_type" for letter, _ in SCALES.values())})
"""Attributes that it has for caches in codes alone."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How a cache becomes codes: its scale, the bits, and whether its node reads codes itself."""

    cache: Cache
    scale: Array
    bits: int
    fast: bool


def write(model: ir.Model, choices: Iterable[Choice]) -> None:
    """Have codes inside the model for some of its caches, and note them in its metadata."""
    names, first = Names(model), model.graph[0]
    set_coded(model, [*coded(model), *(_Writer(model.graph, names, choice).write(first) for choice in choices)])


class _Writer:
    def __init__(self, graph: ir.Graph, names: Names, choice: Choice) -> None:
        self.graph, self.names, self.choice = graph, names, choice
        self.cache, self.bits = choice.cache, choice.bits
        self.steps = add_initializer(graph, f"{self.cache.name}.scale", ir.tensor(choice.scale), names)

    def write(self, first: ir.Node) -> Coded:
        """Write one cache, `first` being the node of the graph that was first."""
        name = self.cache.present.name or ""
        past = self._take_in(first)
        present = self._give_out(past)
        inside = past.name or "", present.name or ""
        return Coded(self.cache.name, name, self.bits, self.choice.scale, inside)

    def _chain(self) -> Chain:
        return Chain(self.graph, self.names, self.cache.past, self.steps, self.bits)

    def _take_in(self, first: ir.Node) -> ir.Value:
        """Encode the input, and let its readers read the codes, decoded where they ask for more than the shape."""
        readers, chain = list(self.cache.past.uses()), self._chain()
        codes = chain.encode(self.cache.past)
        decoded: ir.Value | None = None
        for node, index in readers:
            if self.choice.fast and node is self.cache.node:
                self._attend_to(codes)
            elif self.bits == 8 and node.op_type == "Shape" and not node.domain:
                node.replace_input_with(index, codes)
            else:
                decoded = decoded or chain.decode(codes, self.names.free(f"{self.cache.name}.decoded"))
                node.replace_input_with(index, decoded)
        self.graph.insert_before(first, chain.nodes)
        return codes

    def _attend_to(self, codes: ir.Value) -> None:
        """Have GroupQueryAttention read codes: keys and values have an operand each for their scales."""
        node, (letter, place) = self.cache.node, SCALES[self.cache.operand]
        node.replace_input_with(self.cache.operand, codes)
        node.resize_inputs(max(len(node.inputs), place + 1))
        node.replace_input_with(place, self.steps)
        each = "PER_CHANNEL" if self.choice.scale.ndim > 1 else "PER_TENSOR"
        node.attributes.add(ir.AttrString(f"{letter}_quant_type", each))
        node.attributes.add(ir.AttrInt64(WIDTH, self.bits))

    def _give_out(self, past: ir.Value) -> ir.Value:
        """Return the codes of the output, where what they stand for is given out."""
        present, chain = self.cache.present, self._chain()
        name, shape, maker, readers = present.name, present.shape, present.producer(), list(present.uses())
        assert maker is not None
        present.shape = self._longer(shape)
        if self.choice.fast:
            codes, codes.type, codes.shape = present, ir.TensorType(TYPES[self.bits]), chain.halved(present.shape)
        else:
            present.name = self.names.free(f"{name}.float")
            codes = self._appended(chain, past) if self.cache.appended else chain.encode(present)
        codes.name = self.names.free(f"{name}.codes")
        decoded = chain.decode(codes, name, shape)
        for node, index in readers if self.choice.fast else ():
            node.replace_input_with(index, decoded)
        self.graph.outputs[:] = [decoded if value is present else value for value in self.graph.outputs]
        self.graph.insert_after(maker, chain.nodes)
        return codes

    def _longer(self, shape: ir.Shape | None) -> ir.Shape | None:
        """Return a shape whose length has a name of its own: ONNX Runtime takes the same name for the same size.

        It infers that attention gives out as much as it takes in, and would write to a buffer that is too small.
        """
        past, at = self.cache.past.shape, self.cache.positions
        if past is None or (shape is not None and shape[at] not in (past[at], ir.SymbolicDim(None))):
            return shape
        sizes = list(past if shape is None else shape)
        sizes[at] = ir.SymbolicDim(f"{self.cache.name}.longer") if isinstance(past[at], ir.SymbolicDim) else past[at]
        return ir.Shape(sizes)

    def _appended(self, chain: Chain, past: ir.Value) -> ir.Value:
        """Return codes with those of new entries appended."""
        parts = [
            past if index == self.cache.operand else chain.encode(value)
            for index, value in enumerate(self.cache.node.inputs)
            if value is not None
        ]
        shape = chain.halved(self.cache.present.shape)
        return chain.node("Concat", parts, TYPES[self.bits], shape, axis=self.cache.positions)
