"""Layers: sequences of residual blocks that follow one another and repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bevel.ir.blocks import Block, common_name

# An attention and a feed-forward block in a layer, cross-attention between them, alternating kinds of layers.
LONGEST_PERIOD = 8


@dataclass(frozen=True, eq=False)
class Layer:
    """One or several residual blocks in a row: a transformer's attention and feed-forward network."""

    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """What the names of its blocks begin with, or the first and the last of them."""
        names = [block.name for block in self.blocks]
        if len(names) == 1:
            return names[0]
        return common_name(f"{name.partition('/')[0] or name}." for name in names) or f"{names[0]}..{names[-1]}"

    @property
    def start(self) -> ir.Value:
        """The value that passes when the layer is passed by."""
        return self.blocks[0].start

    @property
    def end(self) -> ir.Value:
        """What the next layer reads."""
        return self.blocks[-1].end

    @property
    def axis(self) -> int:
        """The axis of the stream that holds its channels."""
        return self.blocks[0].axis

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers have in common that compute alike."""
        return tuple(block.kind for block in self.blocks)


def chains(blocks: Sequence[Block]) -> list[list[Block]]:
    """Join blocks of which each starts where the one before ends, in the order of the graph."""
    following = {block.source: block for block in reversed(blocks)}
    ends = {block.end for block in blocks}
    found, taken = [], set[Block]()
    for first in sorted(blocks, key=lambda block: block.source in ends):
        chain: list[Block] = []
        block: Block | None = first
        while block is not None and block not in taken:
            taken.add(block)
            chain.append(block)
            block = following.get(block.end)
        if chain:
            found.append(chain)
    return sorted(found, key=lambda chain: chain[0].places[chain[0].add])


def layers(blocks: Sequence[Block]) -> tuple[Layer, ...]:
    """Group blocks into the layers that repeat; a block that belongs to no repetition is a layer of its own."""
    return tuple(Layer(tuple(part)) for chain in chains(blocks) for part in _cut(chain))


def _cut(chain: list[Block]) -> list[list[Block]]:
    """Cut a chain by the shortest period that most of it repeats with."""
    kinds = [block.kind for block in chain]
    cuts = [list(_parts(kinds, period)) for period in range(1, min(LONGEST_PERIOD, len(chain) // 2) + 1)]
    if not cuts:
        return [[block] for block in chain]
    best = max(cuts, key=lambda parts: sum(end - start for start, end, repeats in parts if repeats))
    return [chain[start:end] for start, end, _ in best]


def _parts(kinds: Sequence[object], period: int) -> Iterator[tuple[int, int, bool]]:
    """Yield where parts start and end: runs of one period, and single blocks between, with whether they repeat."""
    place = 0
    while place < len(kinds):
        first = kinds[place : place + period]
        stop = place + period
        while kinds[stop : stop + period] == first:
            stop += period
        if stop - place > period and len(first) == period:
            yield from ((start, start + period, True) for start in range(place, stop, period))
            place = stop
        else:
            yield place, place + 1, False
            place += 1
