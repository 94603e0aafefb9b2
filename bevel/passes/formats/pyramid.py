"""Directions on an integer pyramid: groups of whole numbers whose magnitudes have a given sum, each group one number.

With `N(d, k)` the number of groups of `d` whole numbers whose magnitudes sum to `k`,

    N(d, k) = N(d-1, k) + N(d, k-1) + N(d-1, k-1)

groups are counted entry by entry: first those that begin with 0, then those with 1, -1, 2, -2 and so on. To decode, the
first magnitude `j` is how many of the places where 1, 2, .. begin the number reaches; what is left of it beyond that
place tells the sign, and then the rest, a group of one entry less whose magnitudes sum to `k - j`.

Source: Fischer 1986, A Pyramid Vector Quantizer; of weights, van der Ouderaa et al. 2024, Pyramid Vector Quantization
for LLMs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from bevel.passes.formats.learned import clusters
from bevel.passes.formats.schemes import Operators, Scheme, Sizes, V, coded, coded_sizes, decoded

Array = np.ndarray[Any, Any]

FLOAT: Final = np.dtype(np.float32)
AMPLITUDE_BITS: Final = 4
POINTS: Final = 1 << 16


@dataclass(frozen=True)
class Pyramid(Scheme):
    """Groups of weights as a direction on an integer pyramid and a length of sixteen (PVQ).

    A group of `width` inputs is whole numbers whose magnitudes sum to `pulses`, divided by their norm, times a length,
    which is one of 16 that are learnt from the weight, in the scale of the row.

    Source: van der Ouderaa et al. 2024, Pyramid Vector Quantization for LLMs (without its feedback of errors).
    """

    width: int = 8
    pulses: int = 6

    @property
    def code_bits(self) -> int:
        """The bits of a direction."""
        return (count(self.width, self.pulses) - 1).bit_length()

    def _pieces(self, inner: int) -> int:
        return -(-inner // self.width)

    def sizes(self, out: int, inner: int) -> Sizes:
        """Return directions, lengths, the lengths there are, and the scales of rows."""
        many = out * self._pieces(inner)
        return {
            **coded_sizes("codes", self.code_bits, many),
            **coded_sizes("lengths", AMPLITUDE_BITS, many),
            "known": ((1 << AMPLITUDE_BITS,), FLOAT),
            "scale": ((out, 1), FLOAT),
        }

    def encode(self, weights: Array, strength: Array | None = None) -> dict[str, Array]:
        """Return the tensors; all errors count the same."""
        inner = weights.shape[1]
        scale = np.sqrt(np.square(weights, dtype=np.float64).mean(1, keepdims=True))
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        groups = np.pad(weights / scale, ((0, 0), (0, -inner % self.width))).reshape(-1, self.width)
        whole = nearest(groups, self.pulses)
        length = (groups * whole).sum(1) / np.linalg.norm(whole, axis=1)
        known = _lengths(length).astype(np.float32)
        lengths = np.searchsorted((known[1:] + known[:-1]) / 2, length)
        return {
            **coded("codes", self.code_bits, enumerated(whole, self.pulses)),
            **coded("lengths", AMPLITUDE_BITS, lengths),
            **{"known": known, "scale": scale},
        }

    def decode(self, operators: Operators[V], tensors: Mapping[str, V], out: int, inner: int) -> V:
        """Return directions times lengths, in the scale of their row."""
        many = out * self._pieces(inner)
        codes = decoded(operators, tensors, "codes", self.code_bits, many)
        whole = points(operators, codes, self.width, self.pulses, many)
        ones = operators.constant(np.ones((self.width, 1), np.float32))
        norms = operators.root(operators.matmul(operators.multiply(whole, whole), ones))
        lengths = operators.gather(tensors["known"], decoded(operators, tensors, "lengths", AMPLITUDE_BITS, many))
        factor = operators.divide(operators.reshape(lengths, (many, 1)), norms)
        rows = operators.reshape(operators.multiply(whole, factor), (out, self._pieces(inner) * self.width))
        if inner % self.width:
            rows = operators.head(rows, inner, 1)
        return operators.multiply(rows, tensors["scale"])


@cache
def count(width: int, pulses: int) -> int:
    """Return how many groups of so many whole numbers have magnitudes that sum to `pulses`.

    >>> count(2, 2), count(8, 6)
    (8, 27008)
    """
    if not pulses:
        return 1
    return 0 if not width else count(width - 1, pulses) + count(width, pulses - 1) + count(width - 1, pulses - 1)


@cache
def _begins(width: int, pulses: int) -> Array:
    """Return where groups begin whose first magnitude is 1, 2, .. `pulses`, by what all sum to: `[sum, magnitude]`.

    Places that are not there are beyond every number.
    """
    table = np.full((pulses + 1, pulses), np.iinfo(np.int32).max, np.int64)
    for total in range(pulses + 1):
        place = count(width - 1, total)
        for magnitude in range(1, total + 1):
            table[total, magnitude - 1] = place
            place += 2 * count(width - 1, total - magnitude)
    return table.astype(np.int32)


@cache
def _counts(width: int, pulses: int) -> Array:
    return np.array([count(width, total) for total in range(pulses + 1)], np.int32)


def nearest(groups: Array, pulses: int) -> Array:
    """Return whole numbers `[n, width]` whose magnitudes sum to `pulses`, in about the direction of groups.

    What is left once all are rounded down is given out one by one, to the entry that brings the direction nearest.
    """
    size = np.abs(groups).astype(np.float64)
    total = size.sum(1, keepdims=True)
    size = np.where(total > 0, size, 1.0)
    whole = np.floor(pulses * size / size.sum(1, keepdims=True))
    rows = np.arange(len(size))
    left = (pulses - whole.sum(1)).astype(int)
    for _ in range(int(left.max(initial=0))):
        match = (size * whole).sum(1, keepdims=True) + size
        energy = np.square(whole).sum(1, keepdims=True) + 2 * whole + 1
        whole[rows, np.argmax(match * match / energy, axis=1)] += left > 0
        left -= left > 0
    found: Array = (np.where(groups < 0, -1, 1) * whole).astype(np.int32)
    return found


def enumerated(whole: Array, pulses: int) -> Array:
    """Return the number of each group; the way back of `points`.

    >>> enumerated(np.array([[2, 0], [0, -2], [-1, 1]]), 2).tolist()
    [6, 1, 4]
    """
    whole = whole.astype(np.int64)
    width, numbers, left = whole.shape[1], np.zeros(len(whole), np.int64), np.full(len(whole), pulses)
    for place in range(width):
        size = np.abs(whole[:, place])
        rest = width - place - 1
        begin = _begins(width - place, pulses)[left, np.maximum(size, 1) - 1]
        left = left - size
        numbers += np.where(size > 0, begin + np.where(whole[:, place] < 0, _counts(rest, pulses)[left], 0), 0)
    return numbers


def points(operators: Operators[V], numbers: V, width: int, pulses: int, many: int) -> V:
    """Return the groups `[many, width]` of numbers `[1, many]`, in single precision; of two entries at least."""
    left, sizes, positive = operators.constant(np.array(pulses, np.int32)), [], []
    for rest in range(width - 1, 0, -1):
        size, numbers = _first(operators, numbers, left, (rest + 1, pulses, many))
        left = operators.subtract(left, size)
        # A magnitude of 0 has no sign: what is left of its number is less than the half that would be positive.
        half = operators.gather(operators.constant(_counts(rest, pulses)), left)
        above = operators.less(numbers, half)
        kept = operators.multiply(operators.integers(above), half)
        numbers = operators.add(operators.subtract(numbers, half), kept)
        sizes.append(size)
        positive.append(above)
    above = operators.less(numbers, operators.constant(np.array(1, np.int32)))
    whole = operators.floats(operators.concatenate([*sizes, left], 0))
    signs = operators.floats(operators.concatenate([*positive, above], 0))
    signs = operators.subtract(operators.add(signs, signs), operators.constant(np.ones(1, np.float32)))
    return operators.transpose(operators.multiply(whole, signs))


def _first(operators: Operators[V], numbers: V, left: V, sizes: tuple[int, int, int]) -> tuple[V, V]:
    """Return the magnitude of the first entry of groups, and what is left of their numbers beyond where it begins."""
    width, pulses, many = sizes
    begins = _begins(width, pulses)
    column = operators.reshape(numbers, (1, many, 1))
    reached = operators.less(operators.gather(operators.constant(begins - 1), left), column)
    ones = operators.constant(np.ones(pulses, np.float32))
    size = operators.integers(operators.matmul(operators.floats(reached), ones))
    # With 0 for a magnitude of 0, the places where magnitudes begin are one table of all sums.
    starts = np.concatenate([np.zeros((pulses + 1, 1), np.int32), begins], axis=1).ravel()
    row = operators.multiply(left, operators.constant(np.array(pulses + 1, np.int32)))
    begin = operators.gather(operators.constant(starts), operators.add(row, size))
    return size, operators.subtract(numbers, begin)


def _lengths(length: Array) -> Array:
    """Return the sixteen lengths that some are nearest to."""
    values = np.sort(length[:: -(-len(length) // POINTS)]).astype(np.float64)
    start = np.quantile(values, (np.arange(1 << AMPLITUDE_BITS) + 0.5) / (1 << AMPLITUDE_BITS))
    return np.sort(clusters(values, np.ones(len(values)), start))


PVQ2, PVQ3, PVQ4 = (Pyramid(f"pvq{bits}", pulses=pulses) for bits, pulses in ((2, 6), (3, 13), (4, 29)))
