"""Attention to codes in a kernel that is quick for a few tokens, and to floats where there are many.

ONNX Runtime's kernel for codes reads them once for each token. It is quicker than decoding up to some ten tokens; for
256 it takes two to three times as long. So a condition on the number of tokens decides: both branches take codes and
give codes out. Where program and kernel share one buffer for past and present, the branch writes into it, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.ir.caches import GROUPED, MICROSOFT, Cache
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.caching.chains import Chain
from bevel.passes.caching.writing import CODED_ONLY, SCALES

# For 8 tokens behind 1024 both take as long, on a processor with AVX-512: 16 query heads on 4 of keys, of width 64.
FEW: Final = 8
OUTPUTS: Final = 3
SCALE_OPERANDS: Final = frozenset(place for _, place in SCALES.values())


def branch(model: ir.Model, node: ir.Node, caches: Sequence[Cache], bits: int) -> None:
    """Have a node that attends to codes do so for few tokens only; `caches` are those that it adds to."""
    if len(node.outputs) == OUTPUTS and isinstance(node.graph, ir.Graph):
        _Branch(node.graph, Names(model), node, bits).write({cache.operand: cache for cache in caches})


class _Branch:
    def __init__(self, graph: ir.Graph, names: Names, node: ir.Node, bits: int) -> None:
        self.graph, self.names, self.node, self.bits = graph, names, node, bits
        self.name = node.name or node.outputs[0].name or GROUPED

    def write(self, caches: Mapping[int, Cache]) -> None:
        """Put a condition in the place of the node."""
        branches = {"then_branch": self._decoded(caches), "else_branch": self._as_codes()}
        choice = ir.node("If", [self._many()], branches, num_outputs=OUTPUTS, name=self.names.free(f"{self.name}.If"))
        self.graph.insert_before(self.node, choice)
        for old, new in zip(self.node.outputs, choice.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            new.metadata_props.update(old.metadata_props)
            for user, index in tuple(old.uses()):
                user.replace_input_with(index, new)
            self.graph.outputs[:] = [new if value is old else value for value in self.graph.outputs]
            new.name, old.name = old.name, None
        self.graph.remove(self.node, safe=True)

    def _many(self) -> ir.Value:
        """Return whether there are more than a few tokens."""
        query, place = self.node.inputs[0], add_initializer(self.graph, f"{self.name}.axis", _whole(1), self.names)
        few = add_initializer(self.graph, f"{self.name}.few", _whole(FEW), self.names)
        found = query
        for op_type, operands, dtype in (
            ("Shape", (), ir.DataType.INT64),
            ("Gather", (place,), ir.DataType.INT64),
            ("Greater", (few,), ir.DataType.BOOL),
        ):
            node = ir.node(op_type, [found, *operands], name=self.names.free(f"{self.name}.{op_type}"))
            found = node.outputs[0]
            found.name, found.type = node.name, ir.TensorType(dtype)
            self.graph.insert_before(self.node, node)
        assert found is not None
        return found

    def _as_codes(self) -> ir.Graph:
        """Return a graph with the node as it is."""
        inner = self._graph("codes")
        node = self._attention(self.node.inputs, self.node.attributes.values(), self.node.name)
        inner.append(node)
        inner.outputs.extend(node.outputs)
        return inner

    def _decoded(self, caches: Mapping[int, Cache]) -> ir.Graph:
        """Return a graph that decodes what is there, attends in floats, and encodes what there is then."""
        inner = self._graph("floats")
        operands = [None if index in SCALE_OPERANDS else value for index, value in enumerate(self.node.inputs)]
        before = {index: self._chain(inner, index, cache) for index, cache in caches.items()}
        after = {index: self._chain(inner, index, cache) for index, cache in caches.items()}
        for index, chain in before.items():
            codes = self.node.inputs[index]
            assert codes is not None
            operands[index] = chain.decode(codes, self.names.free(f"{codes.name}.restored"), caches[index].past.shape)
            inner.extend(chain.nodes)
        kept = [each for each in self.node.attributes.values() if each.name not in CODED_ONLY]
        while operands[-1] is None:
            operands.pop()
        node = self._attention(operands, kept, self.names.free(f"{self.name}.floats"))
        inner.append(node)
        inner.outputs.append(node.outputs[0])
        for index, chain in after.items():
            present = node.outputs[index - 2]
            past = caches[index].past
            present.type, present.shape = past.type, self._longer(past, present)
            inner.outputs.append(chain.encode(present))
            inner.extend(chain.nodes)
        return inner

    def _longer(self, past: ir.Value, present: ir.Value) -> ir.Shape:
        """Return the shape of what is longer than `past`: ONNX Runtime takes the same name for the same size."""
        sizes = list(past.shape or ())
        sizes[2] = ir.SymbolicDim(f"{present.name}.length")
        return ir.Shape(sizes)

    def _chain(self, inner: ir.Graph, index: int, cache: Cache) -> Chain:
        """Return a chain with a scale of its own: what dequantizes in a branch must not read the constants outside."""
        given = self.node.inputs[SCALES[index][1]]
        assert given is not None and given.const_value is not None
        steps = add_initializer(inner, given.name or "", given.const_value, self.names)
        return Chain(inner, self.names, cache.past, steps, self.bits)

    def _attention(self, inputs: Sequence[ir.Value | None], attributes: Iterable[ir.Attr], name: str | None) -> ir.Node:
        node = ir.Node(MICROSOFT, GROUPED, inputs, attributes, num_outputs=OUTPUTS, name=name)
        for old, new in zip(self.node.outputs, node.outputs, strict=True):
            new.name, new.type = self.names.free(f"{old.name}.inner"), old.type
            new.shape = None if old.shape is None else ir.Shape(list(old.shape))
        return node

    def _graph(self, kind: str) -> ir.Graph:
        return ir.Graph([], [], nodes=[], name=f"{self.name}.{kind}")


def _whole(number: int) -> ir.TensorProtocol:
    return ir.tensor(np.array(number, np.int64))
