"""Residual blocks: where a graph adds to a value what it computes from it.

    end = start + branch(start)            pre-norm transformers, MobileNets
    end = tail(start + branch(start))      post-norm transformers (the tail is a norm), ResNets (a Relu)

The stream can pass a block by: `end` becomes `start`, and the branch falls away. Nothing is read but the graph: no
names, no module structure. A sum whose branch multiplies no matrices is no block (the cubic of a GELU).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from typing import Final, NamedTuple

import onnx_ir as ir

from bevel.ir.canonical.dead import is_used, subgraphs
from bevel.ir.cost import multiplies
from bevel.ir.names import free_names
from bevel.ir.stream import channel_axis

# Operators through which the stream goes unchanged but for its type or a constant factor.
PASSING: Final = frozenset({"Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear", "Mul", "Div"})
# Operators that add their first two operands, by domain. The fused ones normalise the sum, too: their tail is inside.
SUMS: Final = frozenset({("", "Add"), ("", "Sum")})
FUSED: Final = frozenset(
    ("com.microsoft", name) for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
)
# Pooling mixes positions without multiplying matrices (PoolFormer).
POOLS: Final = frozenset({"AveragePool", "MaxPool", "LpPool"})
# A norm written out in single operators has eleven nodes.
LONGEST_TAIL: Final = 16


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
        return tuple(sorted(_only_for(self.end, self.start), key=self.places.__getitem__))

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


def find_blocks(model: ir.Model) -> Blocks:
    """Find the residual blocks of the main graph, in time proportional to its nodes."""
    finder = _Finder(model.graph)
    finder.read()
    blocks = _with_tails(finder.blocks)
    return Blocks(tuple(_named(blocks, finder.places)), tuple(finder.refused))


class _Skip(NamedTuple):
    """Where an operand of a sum comes from by way of nodes with one operand: `through` is one that changes it."""

    source: ir.Value
    through: ir.Node | None = None
    steps: int = 0


class _Finder:
    """One walk down the graph, which keeps of each value the possible starts that it depends on."""

    def __init__(self, graph: ir.Graph) -> None:
        self.places = {node: place for place, node in enumerate(graph)}
        self.blocks: list[Block] = []
        self.refused: list[Refused] = []
        self.skips = {node: [_climb(value) for value in node.inputs[:2]] for node in graph if _is_sum(node)}
        sources = [skip.source for skips in self.skips.values() for skip in skips if skip is not None]
        # Sets of starts are integers, one bit a start: of which a value is computed, and of which by a product.
        self.bits = {source: 1 << index for index, source in enumerate(dict.fromkeys(sources))}
        self.reached: dict[ir.Value, int] = {}
        self.mixed: dict[ir.Value, int] = {}
        self.aside: dict[ir.Value, int] = {}  # starts that came in from the side of another block, as a mask does
        self.origins: dict[ir.Value, ir.Value] = {}  # the source that the first terms of a longer sum start from

    def read(self) -> None:
        """Visit every node once."""
        for node in self.places:
            reached = mixed = aside = 0
            for value in operands(node):
                reached |= self._reach(value)
                mixed |= self.mixed.get(value, 0)
                aside |= self.aside.get(value, 0)
            if multiplies(node) or node.op_type in POOLS:
                mixed |= reached
            for output in node.outputs:
                self.reached[output], self.mixed[output], self.aside[output] = reached, mixed, aside
            if node in self.skips:
                self._judge(node)

    def _reach(self, value: ir.Value) -> int:
        return self.reached.get(value, 0) | self.bits.get(value, 0)

    def _judge(self, add: ir.Node) -> None:
        """Note a sum as a block, as almost one, or not at all."""
        found = [
            (skip, index) for index, skip in enumerate(self._skips(add)) if skip and self._depends(add, index, skip)
        ]
        if not found:
            return
        skip, index = min(found, key=lambda each: (each[0].through is not None, each[0].steps))
        start, branch, end = add.inputs[index], add.inputs[1 - index], add.outputs[0]
        assert start is not None and branch is not None
        self.aside[end] |= self.mixed[branch] & ~self._reach(skip.source)
        if skip.through is not None:
            where = skip.through.name or skip.through.outputs[0].name
            self.refused.append(Refused(add, f"its stream goes through {where!r} ({skip.through.op_type})"))
        elif start.shape is None or start.shape != end.shape:
            self.refused.append(Refused(add, f"its stream has the shape {start.shape}, its sum {end.shape}"))
        else:
            source = start if start in self.origins else skip.source
            self.origins[end] = skip.source
            self.blocks.append(Block("", source, start, branch, add, end, self.places))

    def _skips(self, add: ir.Node) -> Iterator[_Skip | None]:
        """Yield where each operand comes from; in (x + f(x)) + g(x) the first one from x."""
        for value, skip in zip(add.inputs[:2], self.skips[add], strict=True):
            inner = self.origins.get(value) if value is not None else None
            alone = inner is not None and value is not None and len(value.uses()) == 1
            yield _Skip(inner) if alone and inner is not None else skip

    def _depends(self, add: ir.Node, index: int, skip: _Skip) -> bool:
        """Say whether the other operand is computed from the source of this one, by a product.

        What reaches it through another block's side only is no stream: a mask or a bias that all attentions add.
        """
        other = add.inputs[1 - index]
        if other is None:
            return False
        return bool(self.mixed.get(other, 0) & ~self.aside.get(other, 0) & self.bits.get(skip.source, 0))


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node computes from, what its inner graphs take from outside included."""
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs(node):
        for inner in graph:
            yield from operands(inner)


def _is_sum(node: ir.Node) -> bool:
    """Say whether a node adds two computed values, and gives nothing else out."""
    kind = (node.domain, node.op_type)
    if kind in SUMS:
        return len(_computed(node)) == 2 == len(node.inputs)
    addends, others = node.inputs[:2], node.outputs[1:]
    return kind in FUSED and _computed(node) == list(addends) and not any(map(is_used, others))


def _computed(node: ir.Node) -> list[ir.Value]:
    """List the operands that are no constants."""
    return [value for value in node.inputs if value is not None and value.const_value is None]


def _climb(value: ir.Value | None) -> _Skip | None:
    """Go up from an operand, while it has one reader and its producer one operand, to a value with several readers."""
    through: ir.Node | None = None
    steps = 0
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or len(computed := _computed(node)) != 1 or subgraphs(node):
            return None
        if node.op_type not in PASSING and (through is None or multiplies(node)):
            through = node
        (value,) = computed
        steps += 1
    return None if value is None else _Skip(value, through, steps)


def _only_for(end: ir.Value, start: ir.Value) -> set[ir.Node]:
    """Collect the nodes whose outputs serve `end` and nothing else, down from `start`."""
    producer = end.producer()
    assert producer is not None
    taken, waiting, seen = {producer}, [producer], dict[ir.Node, int]()
    while waiting:
        for value in operands(waiting.pop()):
            above = value.producer()
            if above is None or value is start or above in taken:
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


def _with_tails(blocks: list[Block]) -> list[Block]:
    """Give those blocks a tail that end in one: the same nodes between a sum and the next block, more than once.

    The last of several blocks has no next one; its tail is that of the one before.
    """
    starts = {block.source for block in blocks}
    tails = {block: tail for block in blocks if (tail := _tail(block, starts)) is not None}
    kinds = [tail.kind for tail in tails.values()]
    usual: tuple[str, ...] | None = None
    found: list[Block] = []
    for block in blocks:
        tail = tails.get(block)
        if tail is None and usual is not None and block.end not in starts:
            tail = _tail(block, None, usual)
        if tail is not None and (tail.kind == usual or kinds.count(tail.kind) > 1 or len(blocks) == 2):
            usual = tail.kind
            block = replace(block, start=block.source if _alike(block.source, tail.end) else block.start, end=tail.end)
        found.append(block)
    return found


class _Tail(NamedTuple):
    """Nodes through which all of a sum passes, and the value that they make of it."""

    kind: tuple[str, ...]
    end: ir.Value


def _tail(block: Block, starts: set[ir.Value] | None, kind: tuple[str, ...] = ()) -> _Tail | None:
    """Follow a sum down to a value that everything else reads: one of `starts`, or what nodes of a `kind` make."""
    total = block.end
    if starts is not None and total in starts:
        return None
    inside, taken, waiting = {total}, dict[ir.Node, None](), list[tuple[int, ir.Node]]()
    _await(total, waiting, block.places)
    while waiting and len(taken) < LONGEST_TAIL:
        _, node = heappop(waiting)
        if node in taken:
            continue
        if not inside.issuperset(_computed(node)) or subgraphs(node):
            return None
        taken[node] = None
        inside.update(node.outputs)
        for output in node.outputs:
            _await(output, waiting, block.places)
        end, kinds = _exit(inside, taken), tuple(node.op_type for node in taken)
        if end is not None and _alike(block.start, end) and (kinds == kind if starts is None else end in starts):
            return _Tail(kinds, end)
    return None


def _await(value: ir.Value, waiting: list[tuple[int, ir.Node]], places: Mapping[ir.Node, int]) -> None:
    """Queue the readers of a value by their place; those in inner graphs have none, and end the tail."""
    for node, _ in value.uses():
        if node in places:
            heappush(waiting, (places[node], node))


def _exit(inside: Iterable[ir.Value], taken: Mapping[ir.Node, None]) -> ir.Value | None:
    """Return the one value of those inside that is read outside."""
    leaving = [
        value for value in inside if value.is_graph_output() or any(node not in taken for node, _ in value.uses())
    ]
    return leaving[0] if len(leaving) == 1 else None


def _alike(left: ir.Value, right: ir.Value) -> bool:
    """Say whether one value can stand for another."""
    return left.dtype == right.dtype and left.shape is not None and left.shape == right.shape


def _parameters(nodes: Iterable[ir.Node]) -> Iterator[str]:
    """Yield the names of the floating-point constants that are no single numbers."""
    for value in (value for node in nodes for value in node.inputs if value is not None):
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1:
            yield value.name or ""


def _named(blocks: Iterable[Block], places: Mapping[ir.Node, int]) -> Iterator[Block]:
    """Name each block by what its weights' names begin with, or by its sum."""
    taken = set[str]()
    for block in blocks:
        name = common_name(weight.value.name or "" for weight in block.weights) or common_name(_parameters(block.nodes))
        name = name or block.add.name or block.add.outputs[0].name or f"block {places[block.add]}"
        if name in taken:
            name = next(free_names(name, taken))
        taken.add(name)
        yield replace(block, name=name)


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
