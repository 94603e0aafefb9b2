"""Counts of values in bins, and the range of 8 bits that they speak for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import floor
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from bevel.passes.activations.grids import HIGHEST, Range

Array = np.ndarray[Any, Any]
Method: TypeAlias = Literal["minmax", "percentile", "mse", "entropy"]

# Sixteen bins to a step of 8 bits, or eight after bins were joined: a bin's width is no error of the choice.
BINS: Final = 4096
# Ends of the range that are tried: each a little nearer to zero than the one before, down to a twentieth.
SHRINK: Final = 0.97
TRIED: Final = 100
# What of a probability is moved to where none is, so that a divergence is finite.
FLOOR: Final = 1e-6


@dataclass
class Histogram:
    """How many values lie in each of some bins of one width, which doubles where values come that are too far off.

    Bin `n` of the counts reaches from `(first + n) * width` to the next. Memory does not grow with what is added.

    >>> histogram = Histogram()
    >>> histogram.add(np.array([0.0, 1.0, 2.0])); histogram.add(np.array([-4.0, 4.0]))
    >>> histogram.low, histogram.high, int(histogram.counts.sum()), len(histogram.counts) <= BINS
    (-4.0, 4.0, 5, True)
    """

    low: float = 0.0
    high: float = 0.0
    width: float = 0.0
    first: int = 0
    zeros: int = 0  # that came before anything else
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, array: Array) -> None:
        """Count the values of an array, which are finite."""
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.width:
            self.width = (self.high - self.low) / (BINS // 2)
        if not self.width:
            self.zeros += array.size
            return
        while self._place(self.high) - self._place(self.low) >= BINS:
            self._coarsen()
        self._reach(self._place(self.low), self._place(self.high))
        places = np.floor(array.reshape(-1) * np.float64(1 / self.width)).astype(np.int64)
        self.counts += np.bincount(places - self.first, minlength=len(self.counts))
        self.counts[-self.first] += self.zeros
        self.zeros = 0

    @property
    def centres(self) -> Array:
        """The middle of each bin."""
        return (self.first + np.arange(len(self.counts)) + 0.5) * self.width

    def _place(self, value: float) -> int:
        return floor(value * (1 / self.width))

    def _coarsen(self) -> None:
        """Join bins two by two."""
        self.width *= 2
        start = self.first & 1
        padded = np.pad(self.counts, (start, (start + len(self.counts)) & 1))
        self.first, self.counts = self.first >> 1, padded.reshape(-1, 2).sum(1)

    def _reach(self, first: int, last: int) -> None:
        """Have bins from one to another."""
        if not len(self.counts):
            self.first = first
        before = max(self.first - first, 0)
        after = max(last + 1 - self.first - len(self.counts), 0)
        self.first, self.counts = self.first - before, np.pad(self.counts, (before, after))


def percentile(histogram: Histogram, share: float) -> Range:
    """Return the range that holds `share` per cent of the values, as many of the others on either side."""
    total = np.cumsum(histogram.counts)
    if not len(total) or share >= 100:
        return histogram.low, histogram.high
    tail = (1 - share / 100) / 2 * float(total[-1])
    below, above = np.searchsorted(total, [tail, total[-1] - tail])
    low, high = (histogram.first + int(below)) * histogram.width, (histogram.first + int(above) + 1) * histogram.width
    return max(low, histogram.low), min(high, histogram.high)


def least_squares(histogram: Histogram) -> Range:
    """Return the range whose grid leaves the least squared error: of rounding within it, of clipping outside."""
    return _search(histogram, _squared)


def entropy(histogram: Histogram) -> Range:
    """Return the range whose grid changes the distribution least, by the Kullback-Leibler divergence."""
    return _search(histogram, _divergence)


Loss: TypeAlias = Callable[[Histogram, float, float], float]


def _search(histogram: Histogram, loss: Loss) -> Range:
    """Draw both ends in together, then each alone."""
    if not len(histogram.counts):
        return histogram.low, histogram.high
    factors = SHRINK ** np.arange(TRIED)
    best = histogram.low, histogram.high
    for moves in ((1, 1), (0, 1), (1, 0)):
        tried = [
            tuple(end * (factor if move else 1) for end, move in zip(best, moves, strict=True)) for factor in factors
        ]
        losses = [loss(histogram, low, high) for low, high in tried]
        low, high = tried[int(np.argmin(losses))]
        best = low, high
    return best


def _squared(histogram: Histogram, low: float, high: float) -> float:
    centres = histogram.centres
    rounded = _levels(centres, low, high) * ((high - low) / HIGHEST) + low
    return float(np.square(rounded - centres) @ histogram.counts)


def _levels(centres: Array, low: float, high: float) -> Array:
    levels: Array = np.clip(np.rint((centres - low) * (HIGHEST / max(high - low, 1e-300))), 0, HIGHEST)
    return levels


def _divergence(histogram: Histogram, low: float, high: float) -> float:
    """Return how far the distribution, clipped, is from one that knows only the counts of the levels.

    The bin of zero does not count: zero is a level whatever the range is, and often most of all values.
    """
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    counts[-histogram.first] = 0
    inside = (centres >= low) & (centres <= high)
    if not inside.any():
        return float("inf")
    kept = counts[inside]
    clipped = kept.copy()
    clipped[0] += counts[centres < low].sum()
    clipped[-1] += counts[centres > high].sum()
    levels, there = _levels(centres[inside], low, high).astype(np.int64), kept > 0
    totals = np.bincount(levels, kept, HIGHEST + 1)
    bins = np.maximum(np.bincount(levels, there, HIGHEST + 1), 1)
    known = np.where(there, (totals / bins)[levels], 0.0)
    p, q = (_smooth(each) for each in (clipped, known))
    return float(np.sum(p * np.log(p / q)))


def _smooth(counts: Array) -> Array:
    share: Array = counts / max(counts.sum(), 1.0) + FLOOR
    whole: Array = share / share.sum()
    return whole


def chooser(method: Method, share: float) -> Callable[[Histogram], Range]:
    """Return what chooses a range by a method; `share` is the per cents of `percentile`."""
    choosers: Mapping[str, Callable[[Histogram], Range]] = {
        "percentile": partial(percentile, share=share),
        "mse": least_squares,
        "entropy": entropy,
    }
    return choosers[method]
