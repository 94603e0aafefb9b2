"""Caches of keys and values: inputs of a graph to which a step adds entries, and which it gives out again.

Which operand of an operator is such a cache, and which output the longer one, is a table. Where several operators read
a cache, the one that gives it out is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

__all__ = ["Cache", "caches", "unclear"]

MICROSOFT: Final = "com.microsoft"
CONCAT: Final = "Concat"
GROUPED: Final = "GroupQueryAttention"

# Operand to output, for operators that attend: keys and values apart, then both stacked along a first axis.
APART: Final[Mapping[tuple[str, str], Mapping[int, int]]] = {
    ("", "Attention"): {4: 1, 5: 2},
    (MICROSOFT, GROUPED): {3: 1, 4: 2},
    (MICROSOFT, "MultiHeadAttention"): {6: 1, 7: 2},
    (MICROSOFT, "DecoderMaskedMultiHeadAttention"): {5: 1, 6: 2},
    (MICROSOFT, "SparseAttention"): {3: 1, 4: 2},
}
STACKED: Final[Mapping[tuple[str, str], Mapping[int, int]]] = {
    (MICROSOFT, "Attention"): {4: 1},
    (MICROSOFT, "DecoderMaskedSelfAttention"): {4: 1},
}
# Operators that write new entries into a cache that has room for them, and the axis along which they do by default.
WRITING: Final[Mapping[tuple[str, str], int]] = {("", "TensorScatter"): -2, ("", "ScatterElements"): 0}

FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
# Keys and values of all heads, each with a batch and a position: what has fewer axes is a state of another kind.
LEAST_RANK: Final = 3


@dataclass(frozen=True, eq=False)
class Cache:
    """A cache: the node that adds to it and at which operand, the graph's input and output, and where it grows."""

    node: ir.Node
    operand: int
    past: ir.Value
    present: ir.Value
    positions: int
    batch: int = 0

    @property
    def name(self) -> str:
        """What the cache is called in messages: the name of the input."""
        return self.past.name or ""

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return 0 if self.past.shape is None else len(self.past.shape)

    @property
    def grouped(self) -> bool:
        """Whether GroupQueryAttention adds to it."""
        return (self.node.domain, self.node.op_type) == (MICROSOFT, GROUPED)

    @property
    def appended(self) -> bool:
        """Whether new entries are appended by a node that does nothing else."""
        return (self.node.domain, self.node.op_type) == ("", CONCAT) and self.present is self.node.outputs[0]

    @property
    def channels(self) -> tuple[int, ...]:
        """The axes of fixed size that tell heads and their entries apart: neither samples nor positions."""
        shape = self.past.shape or ()
        return tuple(
            axis
            for axis, size in enumerate(shape)
            if axis not in (self.batch, self.positions) and isinstance(size, int)
        )

    @property
    def paired(self) -> bool:
        """Whether the last axis has a fixed and even size, so that two entries side by side can share a byte."""
        size = self.past.shape[-1] if self.past.shape else None
        return isinstance(size, int) and not size % 2 and self.positions != self.rank - 1


def caches(model: ir.Model) -> list[Cache]:
    """Return the caches of floats that the main graph takes in and gives out, in the order of its inputs."""
    found: list[Cache] = []
    for value in model.graph.inputs:
        cache = next(_caches_of(value, model.graph), None) if _fits(value) else None
        if cache is not None and cache.present not in [other.present for other in found]:
            found.append(cache)
    return found


def unclear(model: ir.Model) -> list[str]:
    """Return the inputs that are called like caches, and are given out by no operator that is known to add to them."""
    known = {cache.name for cache in caches(model)}
    names = [value.name or "" for value in model.graph.inputs if _fits(value)]
    return [name for name in names if name not in known and ("past" in name.lower() or "cache" in name.lower())]


def _fits(value: ir.Value) -> bool:
    return value.dtype in FLOATS and value.shape is not None and len(value.shape) >= LEAST_RANK


def _caches_of(past: ir.Value, graph: ir.Graph) -> Iterator[Cache]:
    """Yield what adds to a cache and stands in the graph itself: what is in a body, its node gives out or not."""
    assert past.shape is not None
    rank = len(past.shape)
    for node, operand in [use for use in past.uses() if use.node.graph is graph]:
        key = node.domain, node.op_type
        if operand in STACKED.get(key, {}):
            yield from _given_out(node, operand, STACKED[key][operand], past, 3, 1)
        elif operand in APART.get(key, {}):
            yield from _given_out(node, operand, APART[key][operand], past, 2)
        elif key == ("", CONCAT) or (key in WRITING and operand == 0):
            axis = node.attributes.get_int("axis", WRITING.get(key, 0)) % rank
            yield from _given_out(node, operand, 0, past, axis)


def _given_out(
    node: ir.Node, operand: int, output: int, past: ir.Value, positions: int, batch: int = 0
) -> Iterator[Cache]:
    """Yield the cache if the graph gives out the longer one, as it is or through identities."""
    value = node.outputs[output] if output < len(node.outputs) else None
    while value is not None and not value.is_graph_output():
        value = next((use.node.outputs[0] for use in value.uses() if use.node.op_type == "Identity"), None)
    if value is not None and value.dtype in (None, past.dtype):
        yield Cache(node, operand, past, value, positions, batch)
