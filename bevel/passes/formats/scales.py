"""Scales of blocks: floats, powers of two, and what both are made from."""

from typing import Any, Final

import numpy as np

from bevel.passes.formats.blocks import ENTRIES

Array = np.ndarray[Any, Any]

FLOAT_BITS: Final = 32
POWER_BITS: Final = 8
# Exponents of eight bits (E8M0): 2**-127 to 2**127; the 256th code is no number.
LEAST, GREATEST = -127, 127
POWERS: Final[Array] = np.ldexp(np.float32(1), np.arange(LEAST, GREATEST + 1))


def largest(blocks: Array) -> Array:
    """Return the largest magnitude of each block."""
    magnitude: Array = np.maximum(blocks.max(ENTRIES, keepdims=True), -blocks.min(ENTRIES, keepdims=True))
    return magnitude


def exponent(magnitude: Array) -> Array:
    """Return the whole part of the logarithm to base 2; that of zero is 0.

    >>> exponent(np.array([0.25, 3.0, 4.0])).tolist()
    [-2, 1, 2]
    """
    whole: Array = np.frexp(magnitude)[1] - 1  # a magnitude in [0.5, 1) times 2**exponent
    return np.where(magnitude == 0, 0, whole)


def powers(exponents: Array) -> Array:
    """Return powers of two, none beyond what eight bits can say."""
    scale: Array = np.ldexp(np.float32(1), np.clip(exponents, LEAST, GREATEST))
    return scale


def usable(scale: Array) -> Array:
    """Return scales with 1 in place of 0: in a block of zeros, any does."""
    if scale.all():
        return scale.astype(np.float32, copy=False)
    return np.where(scale == 0, np.float32(1), scale).astype(np.float32, copy=False)
