"""What a format is: the codes an element can have, and how the scale of a block is found and kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevel.errors import UsageError
from bevel.passes.formats.blocks import ENTRIES, Axis, Part, arrangement, each_part, join, long_rows, parts, split

Array = np.ndarray[Any, Any]

BYTE = 8


@dataclass(frozen=True)
class Grid:
    """The scale of each block, and the code of its zero where the format has one; both broadcast against elements."""

    scale: Array
    zero: Array | None = None

    def __getitem__(self, part: Any) -> "Grid":
        """Return the grid of some of the blocks."""
        return Grid(self.scale[part], None if self.zero is None else self.zero[part])


@dataclass(frozen=True)
class Format(ABC):
    """A set of codes and the rule for a block's scale.

    Elements come as blocks `[outer, blocks, block, inner]`, a block's entries along axis -2, in single precision. Codes
    are whole numbers from 0 on, in bytes. `code_bits`, `scale_bits` and `zero_bits` are what an element and a block
    take when they are stored.
    """

    name: str
    code_bits: int
    scale_bits: int
    zero_bits: int = 0

    @property
    @abstractmethod
    def levels(self) -> Array:
        """What the codes stand for, one after the other, before zero point and scale."""

    @abstractmethod
    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return the grid `[outer, blocks, 1, inner]` that fits blocks without a search."""

    @abstractmethod
    def codes(self, blocks: Array, grid: Grid) -> Array:
        """Return the nearest code of each element."""

    @abstractmethod
    def values(self, codes: Array, grid: Grid) -> Array:
        """Return what codes stand for, in single precision."""

    def units(self, blocks: Array, grid: Grid) -> Array:
        """Return what the nearest codes of elements stand for with a scale of one, an array of its own."""
        return self.values(self.codes(blocks, grid), Grid(np.ones_like(grid.scale), grid.zero))

    def rounded(self, blocks: Array, grid: Grid) -> Array:
        """Return what the nearest codes of elements stand for, an array of its own."""
        units = self.units(blocks, grid)
        units *= grid.scale
        return units

    def misses(self, blocks: Array, grid: Grid) -> Array:
        """Return what each element loses by the nearest code, with a scale of one, an array of its own."""
        exact: Array = blocks / grid.scale
        exact -= self.units(blocks, grid)
        return exact

    def encoded(self, blocks: Array, grid: Grid, to: Array) -> None:
        """Write the nearest code of each element into an array of bytes."""
        to[...] = self.codes(blocks, grid)

    def fitted(self, array: Array, axis: Axis, block: int) -> "Format":
        """Return the format as it is for one array: itself, unless its levels are learnt."""
        return self

    @property
    def shares_factor(self) -> bool:
        """Whether the scales of an array have a factor in common."""
        return False

    def base(self, array: Array) -> float:
        """Return the factor that all scales of an array share; 1 in formats without one."""
        return 1.0

    def scales(self, base: float) -> Array | None:
        """Return the scales there are, ascending, where they are stored as codes of a byte; None where as floats.

        They are those for a base of 1, times the base.
        """
        return None

    def snap(self, scale: Array, base: float) -> Array:
        """Return the scales nearest to some that can be stored."""
        known = self.scales(base)
        if known is None:
            return scale
        nearest: Array = known[np.searchsorted((known[1:] + known[:-1]) / 2, scale)]
        return nearest

    def bits(self, block: int) -> float:
        """Return the mean bits an element takes in blocks of so many, scale and zero point included.

        With block 0, one scale for a whole axis, the scale counts nothing.
        """
        return self.code_bits + ((self.scale_bits + self.zero_bits) / block if block else 0.0)

    def encode(self, array: Array, axis: Axis, block: int) -> "Quantized":
        """Return the nearest codes of an array, in blocks along an axis.

        The last block may be short; block 0 is the whole axis, no axis the array as one row.
        """
        return self.fitted(array, axis, block)._encode(array, axis, block)

    def _encode(self, array: Array, axis: Axis, block: int) -> "Quantized":
        base = self.base(array)
        blocks = split(array, axis, block)
        codes, scale = np.empty(blocks.shape, np.uint8), np.empty(_of_blocks(blocks), np.float32)
        zero = np.empty(scale.shape, np.uint8) if self.zero_bits else None
        rows, to_codes, to_scale = long_rows(blocks), long_rows(codes), long_rows(scale)

        def work(part: Part) -> None:
            piece = np.ascontiguousarray(rows[part], np.float32)
            grid = self.grid(piece, base)
            self.encoded(piece, grid, to_codes[part])
            to_scale[part] = grid.scale
            if zero is not None:
                long_rows(zero)[part] = grid.zero

        each_part(rows.shape, work)
        return self.assemble(codes, Grid(scale, zero), array.shape, axis, block, base)

    def assemble(
        self, codes: Array, grid: Grid, shape: tuple[int, ...], axis: Axis, block: int, base: float
    ) -> "Quantized":
        """Return the codes and the grid of blocks as the quantized array that they are."""
        zero = None if grid.zero is None else grid.zero.astype(np.uint8).squeeze(ENTRIES)
        scale = grid.scale.squeeze(ENTRIES)
        size = block if axis == "both" else codes.shape[ENTRIES]
        return Quantized(self, join(codes, shape, axis), scale, zero, axis, size, base)

    def round_trip(self, array: Array, axis: Axis, block: int) -> Array:
        """Return an array as it is after quantization to the nearest codes, in blocks along an axis, as `encode`."""
        fmt = self.fitted(array, axis, block)
        base = fmt.base(array)
        blocks = split(array, axis, block)
        result = np.empty(blocks.shape, np.float32)
        rows, to = long_rows(blocks), long_rows(result)
        for part in parts(rows.shape):
            piece = np.ascontiguousarray(rows[part], np.float32)
            to[part] = fmt.rounded(piece, fmt.grid(piece, base))
        return join(result, array.shape, axis)


@dataclass(frozen=True)
class Quantized:
    """An array in a format: a code for each element, in its place, and scale and zero point of each block.

    `scale` and `zero` are `[outer, blocks, inner]`, as in `bevel.passes.formats.blocks`; `base` is in the scales.
    """

    format: Format
    codes: Array
    scale: Array
    zero: Array | None
    axis: Axis
    block: int
    base: float = 1.0

    def __post_init__(self) -> None:
        outer, blocks, _, inner = arrangement(self.codes.shape, self.axis, self.block)
        if self.scale.shape != (outer, blocks, inner):
            raise UsageError(f"scales of shape {self.scale.shape}, not {(outer, blocks, inner)}")

    @property
    def grid(self) -> Grid:
        """The grid of the blocks, as it broadcasts against their elements."""
        zero = None if self.zero is None else np.expand_dims(self.zero.astype(np.float32), ENTRIES)
        return Grid(np.expand_dims(self.scale, ENTRIES), zero)

    def decode(self) -> Array:
        """Return what the codes stand for, in single precision."""
        result, values = np.empty(arrangement(self.codes.shape, self.axis, self.block), np.float32), self.decoding()

        def work(part: Part) -> None:
            result[part] = values(part)

        each_part(result.shape, work)
        return join(result, self.codes.shape, self.axis)

    def decoding(self) -> Callable[[Part], Array]:
        """Return what gives the values of a part of the blocks; what fills up a last block is zero."""
        blocks, grid = split(self.codes, self.axis, self.block), self.grid
        full = blocks.size == self.codes.size
        there = None if full else split(np.ones(self.codes.shape, bool), self.axis, self.block)

        def values(part: Part) -> Array:
            before, some, _, inner = part
            found = self.format.values(blocks[part], grid[before, some, :, inner])
            if there is not None:
                found *= there[part]
            return found

        return values

    @property
    def scale_codes(self) -> Array | None:
        """Which of the format's scales each is, where it stores codes of them."""
        known = self.format.scales(self.base)
        return None if known is None else np.searchsorted(known, self.scale).astype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points when they are packed as tight as the format allows."""
        bits = self.codes.size * self.format.code_bits
        blocks = self.scale.size * (self.format.scale_bits + self.format.zero_bits)
        return -(-bits // BYTE) + -(-blocks // BYTE)


def _of_blocks(blocks: Array) -> tuple[int, ...]:
    outer, count, _, inner = blocks.shape
    return outer, count, 1, inner
