"""Residual blocks: where a graph adds to a value what it computes from it.

    end = start + branch(start)            pre-norm transformers, MobileNets
    end = tail(start + branch(start))      post-norm transformers (the tail is a norm), ResNets (a Relu)

The stream can pass a block by: `end` becomes `start`, and the branch falls away. Nothing is read but the graph: no
names, no module structure. A sum whose branch multiplies no matrices is no block (the cubic of a GELU).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import onnx_ir as ir

from bevel.ir.canonical.dead import is_used, subgraphs
from bevel.ir.cost import multiplies
from bevel.ir.names import free_names
from bevel.ir.residual import Block, Blocks, Refused, common_name, computed, operands
from bevel.ir.tails import with_tails

# Operators through which the stream goes unchanged but for its type or a constant factor.
PASSING: Final = frozenset({"Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear", "Mul", "Div"})
# Operators that add their first two operands, by domain. The fused ones normalise the sum, too: their tail is inside.
SUMS: Final = frozenset({("", "Add"), ("", "Sum")})
FUSED: Final = frozenset(
    ("com.microsoft", name) for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
)
# Pooling mixes positions without multiplying matrices (PoolFormer).
POOLS: Final = frozenset({"AveragePool", "MaxPool", "LpPool"})


def find_blocks(model: ir.Model) -> Blocks:
    """Find the residual blocks of the main graph, in time proportional to its nodes."""
    finder = _Finder(model.graph)
    finder.read()
    blocks = with_tails(finder.blocks)
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
            if _mixes(node):
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


def _is_sum(node: ir.Node) -> bool:
    """Say whether a node adds two computed values, and gives nothing else out."""
    kind = (node.domain, node.op_type)
    if kind in SUMS:
        return len(computed(node)) == 2 == len(node.inputs)
    addends, others = node.inputs[:2], node.outputs[1:]
    return kind in FUSED and computed(node) == list(addends) and not any(map(is_used, others))


def _mixes(node: ir.Node) -> bool:
    """Say whether a node multiplies matrices or pools, or the graphs inside it do."""
    if multiplies(node) or node.op_type in POOLS:
        return True
    return any(_mixes(inner) for graph in subgraphs(node) for inner in graph)


def _climb(value: ir.Value | None) -> _Skip | None:
    """Go up from an operand, while it has one reader and its producer one operand, to a value with several readers."""
    through: ir.Node | None = None
    steps = 0
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        data = [] if node is None else computed(node)
        if node is None or len(data) != 1 or subgraphs(node):
            return None
        if node.op_type not in PASSING and (through is None or multiplies(node)):
            through = node
        (value,) = data
        steps += 1
    return None if value is None else _Skip(value, through, steps)


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


def _parameters(nodes: Iterable[ir.Node]) -> Iterator[str]:
    """Yield the names of the floating-point constants that are no single numbers."""
    for value in (value for node in nodes for value in node.inputs if value is not None):
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1:
            yield value.name or ""
