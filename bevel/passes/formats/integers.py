"""Integers times a scale: symmetric ones, with a zero point, and block floating point."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.passes.formats.base import Format, Grid
from bevel.passes.formats.blocks import ENTRIES
from bevel.passes.formats.scales import FLOAT_BITS, POWER_BITS, POWERS, exponent, largest, powers, usable

Array = np.ndarray[Any, Any]

# Bounds in the type of what is clipped: others are slow.
LOWEST: Final = np.float32(0)


@dataclass(frozen=True)
class Integers(Format):
    """Whole numbers of `code_bits` bits, less a zero point, times a scale."""

    @property
    def highest(self) -> int:
        """The highest code; the lowest is 0."""
        return int((1 << self.code_bits) - 1)

    @property
    def middle(self) -> int:
        """The code of zero where no zero point is stored."""
        return int(1 << (self.code_bits - 1))

    @property
    def levels(self) -> Array:
        """The codes themselves, less the one of zero if that is always the same."""
        codes = np.arange(self.highest + 1, dtype=np.float32)
        return codes if self.zero_bits else codes - self.middle

    def codes(self, blocks: Array, grid: Grid) -> Array:
        """Return the nearest codes, clipped."""
        return self._steps(blocks, grid).astype(np.uint8)

    def values(self, codes: Array, grid: Grid) -> Array:
        """Return the distance of codes from that of zero, times scale."""
        result: Array = np.subtract(codes, self._zero(grid), dtype=np.float32)
        result *= grid.scale
        return result

    def units(self, blocks: Array, grid: Grid) -> Array:
        """Return the distance of the nearest codes from that of zero, without making bytes of them."""
        steps = self._steps(blocks, grid)
        steps -= self._zero(grid)
        return steps

    def misses(self, blocks: Array, grid: Grid) -> Array:
        """Return what each element loses by the nearest code: of a step, before it is clipped and after."""
        steps: Array = blocks / grid.scale
        steps += self._zero(grid)
        nearest = np.rint(steps)
        np.clip(nearest, LOWEST, np.float32(self.highest), out=nearest)
        steps -= nearest
        return steps

    def encoded(self, blocks: Array, grid: Grid, to: Array) -> None:
        """Write the nearest codes, in one pass from the steps that they are."""
        np.copyto(to, self._steps(blocks, grid), casting="unsafe")

    def _steps(self, blocks: Array, grid: Grid) -> Array:
        """Return the nearest codes as floats."""
        steps = blocks / grid.scale
        steps += self._zero(grid)  # whole: before or after rounding is the same
        np.rint(steps, out=steps)
        np.clip(steps, LOWEST, np.float32(self.highest), out=steps)
        return steps

    def _zero(self, grid: Grid) -> Any:
        return np.float32(self.middle) if grid.zero is None else grid.zero


@dataclass(frozen=True)
class Symmetric(Integers):
    """Signed whole numbers times a scale.

    The scale is the element of the block that is farthest from zero over `-2^(bits-1)`, so it is negative where that
    element is positive: all codes are used, and the step is 1/8 of the largest magnitude at 4 bits, not 1/7.
    """

    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return scales that put the farthest element of each block on the lowest code."""
        high, low = blocks.max(ENTRIES, keepdims=True), blocks.min(ENTRIES, keepdims=True)
        farthest = np.where(high > -low, high, low)
        farthest /= np.float32(-self.middle)
        return Grid(usable(farthest))


@dataclass(frozen=True)
class BlockFloat(Integers):
    """Block floating point: mantissas with an exponent for each block.

    The step is `2^(e - (bits - 2))` with `e` the exponent of the largest magnitude; the top mantissas are clipped.
    """

    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return powers of two."""
        return Grid(powers(exponent(largest(blocks)) - (self.code_bits - 2)))

    def scales(self, base: float) -> Array:
        """Return the powers of two that eight bits can say."""
        return POWERS


@dataclass(frozen=True)
class Affine(Integers):
    """Unsigned whole numbers less a zero point, times a scale: from the block's least element to its greatest.

    Zero is always one of the values, so that what is zero stays zero.
    """

    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return scales and zero points that span each block and zero."""
        high = np.maximum(blocks.max(ENTRIES, keepdims=True), 0)
        low = np.minimum(blocks.min(ENTRIES, keepdims=True), 0)
        # Each is divided on its own: their difference may be beyond the largest number.
        scale = usable(high / np.float32(self.highest) - low / np.float32(self.highest))
        return Grid(scale, np.clip(np.rint(-low / scale), 0, self.highest))


BITS: Final = range(2, 9)
INT2, INT3, INT4, INT5, INT6, INT7, INT8 = (Symmetric(f"int{bits}", bits, FLOAT_BITS) for bits in BITS)
UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8 = (Affine(f"uint{bits}", bits, FLOAT_BITS, bits) for bits in BITS)
BFP3, BFP4, BFP5, BFP6, BFP7, BFP8 = (BlockFloat(f"bfp{bits}", bits, POWER_BITS) for bits in BITS[1:])
MXINT8: Final = BlockFloat("mxint8", 8, POWER_BITS)
