"""What a format is: the codes an element can have, and how the scale of a block is found and kept."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevel.passes.formats.blocks import join, parts, split

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Grid:
    """The scale of each block, and the code of its zero where the format has one; both broadcast against elements."""

    scale: Array
    zero: Array | None = None


@dataclass(frozen=True)
class Format(ABC):
    """A set of codes and the rule for a block's scale.

    Elements come as blocks `[outer, blocks, block, inner]`, a block's entries along axis -2, in single precision;
    `code_bits`, `scale_bits` and `zero_bits` are what an element and a block take when they are stored.
    """

    name: str
    code_bits: int
    scale_bits: int
    zero_bits: int = 0

    @abstractmethod
    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return the grid `[outer, blocks, 1, inner]` that fits blocks without a search."""

    @abstractmethod
    def codes(self, blocks: Array, grid: Grid) -> Array:
        """Return the nearest code of each element, as small integers."""

    @abstractmethod
    def values(self, codes: Array, grid: Grid) -> Array:
        """Return what codes stand for, in single precision."""

    def base(self, array: Array) -> float:
        """Return the factor that all scales of an array share; 1 in formats without one."""
        return 1.0

    def bits(self, block: int) -> float:
        """Return the mean bits an element takes in blocks of so many, scale and zero point included.

        With block 0, one scale for a whole axis, the scale counts nothing.
        """
        return self.code_bits + ((self.scale_bits + self.zero_bits) / block if block else 0.0)

    def round_trip(self, array: Array, axis: int | None, block: int) -> Array:
        """Return an array as it is after quantization to the nearest codes, in blocks along an axis.

        The last block may be short; block 0 is the whole axis, no axis the array as one row.
        """
        shape, base = array.shape, self.base(array)
        blocks = split(array, axis, block)
        result = np.empty(blocks.shape, np.float32)
        for part in parts(blocks.shape):
            piece = blocks[part].astype(np.float32)
            grid = self.grid(piece, base)
            result[part] = self.values(self.codes(piece, grid), grid)
        return join(result, shape, axis)
