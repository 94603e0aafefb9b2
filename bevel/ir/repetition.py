"""Layers: sequences of residual blocks that follow one another and repeat."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir

from bevel.ir.blocks import find_blocks
from bevel.ir.names import free_names
from bevel.ir.residual import Block, common_name

# An attention and a feed-forward block in a layer, cross-attention between them, alternating kinds of layers.
LONGEST_PERIOD = 8


@dataclass(frozen=True, eq=False)
class Layer:
    """One or several residual blocks in a row: a transformer's attention and feed-forward network."""

    name: str
    blocks: tuple[Block, ...]

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
    """Join blocks of which each starts with what the one before ends with, in the order of the graph."""
    following = {block.start: block for block in reversed(blocks)}
    ends = {block.end for block in blocks}
    found, taken = [], set[Block]()
    for first in sorted(blocks, key=lambda block: block.start in ends):
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
    parts = [tuple(part) for chain in chains(blocks) for part in _cut(chain)]
    taken = set[str]()
    return tuple(Layer(_free(_name(part), taken), part) for part in parts)


def singles(blocks: Sequence[Block]) -> tuple[Layer, ...]:
    """Make a layer of every block."""
    return tuple(Layer(block.name, (block,)) for block in blocks)


def runs(blocks: Sequence[Block], taken: Collection[Block]) -> list[Layer]:
    """Join those of the blocks that are taken and follow one another."""
    parts = [tuple(part) for chain in chains(blocks) for wanted, part in groupby(chain, taken.__contains__) if wanted]
    return [Layer(_ends(part), part) for part in parts]


def same_layers(copy: ir.Model, found: Sequence[Layer]) -> list[Layer]:
    """Return in a copy of a model the layers that were found in the model."""
    blocks = {block.name: block for block in find_blocks(copy).blocks}
    return [Layer(layer.name, tuple(blocks[block.name] for block in layer.blocks)) for layer in found]


def _name(part: Sequence[Block]) -> str:
    """Return what the names of blocks begin with, or the first and the last of them."""
    begin = common_name(f"{block.name.partition('/')[0] or block.name}." for block in part)
    return begin if begin and len(part) > 1 else _ends(part)


def _ends(part: Sequence[Block]) -> str:
    return part[0].name if len(part) == 1 else f"{part[0].name}..{part[-1].name}"


def _free(name: str, taken: set[str]) -> str:
    """Take a name, with a number if it is taken."""
    found = name if name not in taken else next(free_names(name, taken))
    taken.add(found)
    return found


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
