"""Codebooks that are learnt from each weight, with one level that is zero.

What is learnt from are elements in the scale of their block, whose largest magnitude is one; with `axis=flat` and
`block=0` a weight has one scale, and its levels are those of the papers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np

from bevel.passes.formats.base import Format
from bevel.passes.formats.blocks import Axis, split
from bevel.passes.formats.codebooks import Codebook
from bevel.passes.formats.scales import FLOAT_BITS, largest, usable

Array = np.ndarray[Any, Any]

# Blocks are left out evenly above so many elements; the rest, in order, become the means of so many runs.
ELEMENTS: Final = 1 << 19
POINTS: Final = 1 << 12
TIMES: Final = 30
# A component of a mixture is no narrower than this share of the distance that its levels have in the mean.
NARROW: Final = 0.1


@dataclass(frozen=True)
class Learned(Codebook):
    """Levels that are learnt from each weight, one of them zero, times a scale: by k-means, or a mixture of Gaussians.

    Before anything is learnt, they are those of a normal distribution. Source: Han et al. 2016, Deep Compression; of
    the mixture, whose component at zero prunes, Dong et al. 2022, Finding the Task-Optimal Low-Bit Sub-Distribution
    (DGMS, here without its training).
    """

    by: Literal["kmeans", "mixture"] = "kmeans"

    @property
    def top(self) -> float:
        """The magnitude that the largest element of a block has when levels are learnt."""
        return 1.0

    def fitted(self, array: Array, axis: Axis, block: int) -> Format:
        """Return the format with the levels of an array."""
        points, heavy = _points(split(array, axis, block))
        fit: Callable[[Array, Array, Array], Array] = clusters if self.by == "kmeans" else mixture
        levels = np.sort(fit(points, heavy, self.levels.astype(np.float64)))
        return Fitted(self.name, self.code_bits, self.scale_bits, table=tuple(float(level) for level in levels))


@dataclass(frozen=True)
class Fitted(Codebook):
    """Levels that were learnt from one weight, times a scale."""

    @property
    def top(self) -> float:
        """The magnitude that the largest element of a block has."""
        return 1.0


def _points(blocks: Array) -> tuple[Array, Array]:
    """Return means of runs of elements in order, in the scale of their blocks, and how much the squared error of each
    counts."""
    size = blocks.shape[2]
    rows = np.moveaxis(blocks, 2, -1).reshape(-1, size)
    rows = rows[:: max(-(-rows.size // ELEMENTS), 1)][:, :, None]
    scale = usable(largest(rows))
    values = (rows / scale).ravel()
    order = np.argsort(values)
    heavy = np.broadcast_to(np.square(scale / scale.max()), rows.shape).ravel()[order].astype(np.float64)
    starts = np.unique(np.linspace(0, len(order), min(POINTS, len(order)), endpoint=False).astype(int))
    total = np.add.reduceat(heavy, starts)
    return np.add.reduceat(heavy * values[order], starts) / np.maximum(total, 1e-30), total


def clusters(points: Array, heavy: Array, levels: Array) -> Array:
    """Return the levels that points in ascending order are nearest to, one of them zero (k-means).

    >>> clusters(np.array([-1.0, 0.1, 0.9, 1.1]), np.ones(4), np.array([-0.5, 0.0, 0.5])).round(6).tolist()
    [-1.0, 0.0, 1.0]
    """
    weight, first = (np.append(0, np.cumsum(each)) for each in (heavy, heavy * points))
    for _ in range(TIMES):
        levels = np.sort(levels)
        borders = np.searchsorted(points, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(points)]])
        total, moment = np.diff(weight[edges]), np.diff(first[edges])
        found = np.divide(moment, total, out=levels.copy(), where=total > 0)
        levels = _with_zero(found)
    return levels


def mixture(points: Array, heavy: Array, levels: Array) -> Array:
    """Return the means of the Gaussians that points most likely come from, one of them zero."""
    means = clusters(points, heavy, levels)
    least = NARROW * (np.ptp(means) / len(means) or 1.0)
    deviations = np.full(len(means), 2 * least)
    shares = np.full(len(means), 1 / len(means))
    for _ in range(TIMES):
        away = (points[:, None] - means) / deviations
        likely = np.log(shares / deviations) - away**2 / 2
        parts = np.exp(likely - likely.max(1, keepdims=True))
        parts *= (heavy / parts.sum(1))[:, None]
        total = np.maximum(parts.sum(0), 1e-30)
        means = _with_zero(points @ parts / total)
        spread = np.sum(parts * np.square(points[:, None] - means), axis=0) / total
        deviations, shares = np.maximum(np.sqrt(spread), least), np.maximum(total / heavy.sum(), 1e-12)
    return means


def _with_zero(levels: Array) -> Array:
    """Put zero in the place of the level next to it."""
    levels = levels.copy()
    levels[np.argmin(np.abs(levels))] = 0
    return levels


def _normal(bits: int) -> tuple[float, ...]:
    """Return quantiles of a normal distribution of which the outermost are about one, and zero."""
    count = 1 << bits
    shares = (np.arange(count) + 0.5) / count
    levels = np.array([NormalDist(0, 0.4).inv_cdf(float(share)) for share in shares])
    return tuple(float(level) for level in _with_zero(levels))


KMEANS2, KMEANS3, KMEANS4 = (Learned(f"kmeans{bits}", bits, FLOAT_BITS, table=_normal(bits)) for bits in (2, 3, 4))
DGMS2, DGMS3, DGMS4 = (
    Learned(f"dgms{bits}", bits, FLOAT_BITS, table=_normal(bits), by="mixture") for bits in (2, 3, 4)
)
