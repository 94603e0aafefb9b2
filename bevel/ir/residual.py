"""What a residual block is: its stream, its branch, and the nodes and weights that serve it alone."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import onnx_ir as ir

from bevel.ir.canonical.dead import subgraphs
from bevel.ir.stream import channel_axis


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block: `add` adds `branch`, which is computed from it, to `start`.

    `end` is what the next block reads: the sum, or what a tail of nodes makes of it. `source` is where the stream comes
    from: `start`, or what `start` is a copy of.
    """

    name: str
    source: ir.Value
    start: ir.Value
    branch: ir.Value
    add: ir.Node
    end: ir.Value
    places: Mapping[ir.Node, int]

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that nothing but this block needs, in the order of the graph."""
        return tuple(sorted(_only_for(self.end, self.start, self.places), key=self.places.__getitem__))

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """The constant floating-point matrices (and larger) among the operands, in the order of the graph."""
        return tuple(Weight(node, index) for node in self.nodes for index in _matrices(node))

    @cached_property
    def axis(self) -> int:
        """The axis of the stream that holds its channels."""
        return channel_axis(self.start, self.nodes)

    @property
    def kind(self) -> tuple[object, ...]:
        """What blocks have in common that compute alike: which operators take weights of which shapes."""
        return tuple(weight.kind for weight in self.weights)


class Weight(NamedTuple):
    """A constant operand of a node."""

    node: ir.Node
    operand: int

    @property
    def value(self) -> ir.Value:
        """The initializer."""
        value = self.node.inputs[self.operand]
        assert value is not None
        return value

    @property
    def kind(self) -> tuple[object, ...]:
        """The operator, which operand it is, its type and shape."""
        tensor = self.value.const_value
        assert tensor is not None
        return self.node.domain, self.node.op_type, self.operand, tensor.dtype, tuple(tensor.shape.numpy())


class Refused(NamedTuple):
    """A sum that looks like a residual block, and why the stream cannot pass it by."""

    add: ir.Node
    why: str


@dataclass(frozen=True)
class Blocks:
    """The residual blocks of a model's main graph in its order, and sums that are almost some."""

    blocks: tuple[Block, ...]
    refused: tuple[Refused, ...]

    @cached_property
    def innermost(self) -> tuple[Block, ...]:
        """The blocks that hold no other."""
        adds = {block.add for block in self.blocks}
        return tuple(block for block in self.blocks if not adds.intersection(block.nodes) - {block.add})


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node computes from, what its inner graphs take from outside included."""
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs(node):
        for inner in graph:
            yield from operands(inner)


def computed(node: ir.Node) -> list[ir.Value]:
    """List the operands that are no constants."""
    return [value for value in node.inputs if value is not None and value.const_value is None]


def _only_for(end: ir.Value, start: ir.Value, places: Container[ir.Node]) -> set[ir.Node]:
    """Collect the nodes among `places` whose outputs serve `end` and nothing else, down from `start`."""
    producer = end.producer()
    assert producer is not None
    taken, waiting, seen = {producer}, [producer], dict[ir.Node, int]()
    while waiting:
        for value in operands(waiting.pop()):
            above = value.producer()
            if above is None or value is start or above in taken or above not in places:
                continue
            seen[above] = seen.get(above, 0) + 1
            if seen[above] == _readers(above):
                taken.add(above)
                waiting.append(above)
    return taken


def _readers(node: ir.Node) -> int:
    """Count the uses of a node's outputs; -1 if one of them is the graph's."""
    if any(output.is_graph_output() for output in node.outputs):
        return -1
    return sum(len(output.uses()) for output in node.outputs)


def _matrices(node: ir.Node) -> Iterator[int]:
    for index, value in enumerate(node.inputs):
        tensor = value.const_value if value is not None else None
        if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > 1 and tensor.size > 1:
            yield index


def common_name(names: Iterable[str]) -> str:
    """Return the words that all dotted names begin with, without the last word of any.

    >>> common_name(["h.0.attn.q.weight", "h.0.attn.k.weight", "val_7"]), common_name(["h.0.up.weight"])
    ('h.0.attn', 'h.0.up')
    """
    words = [name.split(".")[:-1] for name in names if "." in name]
    common: list[str] = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)
