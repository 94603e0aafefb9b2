"""Integers times a scale: symmetric ones, with a zero point, and block floating point."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.passes.formats.base import Format, Grid
from bevel.passes.formats.blocks import ENTRIES

Array = np.ndarray[Any, Any]

FLOAT_BITS: Final = 32
EXPONENT_BITS: Final = 8
# Exponents of eight bits (E8M0): 2**-127 to 2**127.
EXPONENTS: Final = (-127, 127)


@dataclass(frozen=True)
class Symmetric(Format):
    """Signed integers of `code_bits` bits, whose lowest is the element of the block that is farthest from zero.

    The scale is that element over `-2^(bits-1)`, so it is negative where the element is positive: all codes are used,
    and the step is 1/8 of the largest magnitude at 4 bits, not 1/7.
    """

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return int(-(1 << (self.code_bits - 1)))

    @property
    def highest(self) -> int:
        """The highest code."""
        return -self.lowest - 1

    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return scales that put the farthest element of each block on the lowest code."""
        high, low = blocks.max(ENTRIES, keepdims=True), blocks.min(ENTRIES, keepdims=True)
        return Grid(usable(np.where(high > -low, high, low) / np.float32(self.lowest)))

    def codes(self, blocks: Array, grid: Grid) -> Array:
        """Return the nearest integer multiples of the scale, clipped."""
        return nearest(blocks, grid, self.lowest, self.highest).astype(np.int8)

    def values(self, codes: Array, grid: Grid) -> Array:
        """Return codes times scale."""
        product: Array = codes * grid.scale
        return product


@dataclass(frozen=True)
class BlockFloat(Symmetric):
    """Mantissas of `code_bits` bits, sign included, with one exponent of 8 bits a block.

    The step is `2^(e - (bits - 2))` with `e` the exponent of the largest magnitude; the top mantissas are clipped.
    """

    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return powers of two."""
        _, exponent = np.frexp(largest(blocks))  # a magnitude in [0.5, 1) times 2**exponent: e is one less
        low, high = EXPONENTS
        return Grid(np.ldexp(np.float32(1), np.clip(exponent - 1 - (self.code_bits - 2), low, high)))


@dataclass(frozen=True)
class Affine(Format):
    """Unsigned integers with a scale and the code of zero: from the least element of the block to the greatest.

    Zero is always one of the values, so that what is zero stays zero.
    """

    lowest: int = 0

    @property
    def highest(self) -> int:
        """The highest code."""
        return int((1 << self.code_bits) - 1)

    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return scales and zero points that span each block and zero."""
        high = np.maximum(blocks.max(ENTRIES, keepdims=True), 0)
        low = np.minimum(blocks.min(ENTRIES, keepdims=True), 0)
        # Each is divided on its own: their difference may be beyond the largest number.
        scale = usable(high / np.float32(self.highest) - low / np.float32(self.highest))
        return Grid(scale, np.clip(np.rint(-low / scale), self.lowest, self.highest))

    def codes(self, blocks: Array, grid: Grid) -> Array:
        """Return the nearest codes, clipped."""
        return nearest(blocks, grid, self.lowest, self.highest).astype(np.uint8)

    def values(self, codes: Array, grid: Grid) -> Array:
        """Return the distance of codes from the zero point, times scale."""
        product: Array = (codes - grid.zero) * grid.scale
        return product


def nearest(blocks: Array, grid: Grid, lowest: int, highest: int) -> Array:
    """Return the whole multiples of the scale that are nearest to elements, shifted by the zero point and clipped."""
    steps = blocks / grid.scale
    if grid.zero is not None:  # the zero point is whole, so it may be added before or after rounding
        steps += grid.zero
    np.rint(steps, out=steps)
    clipped: Array = np.clip(steps, lowest, highest, out=steps)
    return clipped


def largest(blocks: Array) -> Array:
    """Return the largest magnitude of each block."""
    magnitude: Array = np.maximum(blocks.max(ENTRIES, keepdims=True), -blocks.min(ENTRIES, keepdims=True))
    return magnitude


def usable(scale: Array) -> Array:
    """Return scales with 1 in place of 0: in a block of zeros, any does."""
    return np.where(scale == 0, np.float32(1), scale).astype(np.float32, copy=False)


INT2, INT3, INT4, INT5, INT6, INT7, INT8 = (Symmetric(f"int{bits}", bits, FLOAT_BITS) for bits in range(2, 9))
UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8 = (
    Affine(f"uint{bits}", bits, FLOAT_BITS, bits) for bits in range(2, 9)
)
BFP3, BFP4, BFP5, BFP6, BFP7, BFP8 = (BlockFloat(f"bfp{bits}", bits, EXPONENT_BITS) for bits in range(3, 9))
