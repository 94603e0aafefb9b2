"""Grids of 8 bits: unsigned with a zero point for activations, signed and symmetric for each output of a weight."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Final, TypeAlias

import numpy as np

Array = np.ndarray[Any, Any]
Range: TypeAlias = tuple[float, float]

HIGHEST: Final = 255
"""The highest code of an activation; the lowest is 0."""
SIGNED: Final = 127
"""The highest code of a weight; the lowest is its opposite."""
REDUCED: Final = 63
"""The same in 7 bits: no sum of two products with an activation overflows 16 bits then."""
# The largest part of 32 bits that a bias may take, so that the sum of products still fits beside it.
BIAS_LIMIT: Final = 1 << 30
# A smaller scale would not be a normal number, and what is divided by it not finite.
SMALLEST: Final = float(np.finfo(np.float32).tiny) * HIGHEST


@dataclass(frozen=True)
class Grid:
    """`(code - zero) * scale` for the codes 0 to 255."""

    scale: np.float32
    zero: int

    def round_trip(self, array: Array) -> Array:
        """Return an array as it is after quantization."""
        codes = np.clip(np.rint(array / self.scale) + self.zero, 0, HIGHEST)
        values: Array = (codes - self.zero) * self.scale
        return values.astype(np.float32)

    @property
    def ends(self) -> Range:
        """The least and the greatest element."""
        return float(-self.zero * self.scale), float((HIGHEST - self.zero) * self.scale)

    @property
    def looser(self) -> "Grid":
        """A grid that reaches at least as far and a step beyond on both sides: no clipping to these ends is in vain."""
        wider = np.float32(self.scale * np.float32(HIGHEST / (HIGHEST - 3)))
        return Grid(wider, min(ceil(self.zero * float(self.scale) / float(wider)) + 1, HIGHEST))


def spanning(low: float, high: float, within: Range = (-inf, inf)) -> Grid:
    """Return the grid from `low` to `high`, of which zero is always an element, that does not leave some bounds.

    >>> spanning(0, 6, within=(0, 6)).zero, spanning(-1, 1.1).zero, spanning(2, 5.1)
    (0, 121, Grid(scale=np.float32(0.02), zero=0))
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / HIGHEST)
    if scale < SMALLEST:
        return Grid(np.float32(1), 0)
    zero = int(np.clip(np.rint(-low / scale), 0, HIGHEST))
    # Rounding carries the ends over the bounds, by less than a step: ONNX Runtime drops a Clip only if it does not.
    most = [end / steps for end, steps in ((within[1], HIGHEST - zero), (-within[0], zero)) if steps and end > 0]
    scale = min(scale, *map(np.float32, most))
    while (HIGHEST - zero) * scale > max(within[1], 0.0) or -zero * scale < min(within[0], 0.0):
        scale = np.nextafter(scale, np.float32(0))
    return Grid(scale, zero)


@dataclass(frozen=True)
class Coded:
    """A weight as signed codes and one scale `[outputs]` for each entry of `axis`."""

    codes: Array
    scale: Array
    axis: int

    def decode(self) -> Array:
        """Return what the codes stand for."""
        return self.codes.astype(np.float32) * along(self.scale, self.axis, self.codes.ndim)


def coded(weights: Array, axis: int, least: Array | None = None, highest: int = SIGNED) -> Coded:
    """Return a weight in the nearest codes; `least` is the smallest scale that each output may have.

    >>> found = coded(np.array([[1.0, -2.0], [0.0, 0.0]]), 0)
    >>> found.codes.tolist(), found.decode().tolist()
    ([[64, -127], [0, 0]], [[1.007874..., -2.0], [0.0, 0.0]])
    """
    others = tuple(place for place in range(weights.ndim) if place != axis)
    scale = (np.abs(weights).max(others, initial=0.0) / highest).astype(np.float32)
    scale = np.where(scale < SMALLEST, np.float32(1), scale)
    if least is not None:
        scale = np.maximum(scale, least.astype(np.float32))
    steps = np.rint(weights / along(scale, axis, weights.ndim))
    return Coded(np.clip(steps, -highest, highest).astype(np.int8), scale, axis)


def along(vector: Array, axis: int, rank: int) -> Array:
    """Return a vector that lies along an axis."""
    return vector.reshape([-1 if place == axis else 1 for place in range(rank)])


def least_scale(bias: Array, input_scale: np.float32) -> Array:
    """Return the weight scales below which a bias does not fit the 32 bits that products are summed in."""
    least: Array = np.abs(bias.astype(np.float64)) / (float(input_scale) * BIAS_LIMIT)
    return least


def bias_codes(bias: Array, scale: Array) -> Array:
    """Return a bias in 32 bits; what is not finite (a mask) comes out wrong, which the layer's error tells."""
    with np.errstate(invalid="ignore"):
        codes: Array = np.rint(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
    return codes
