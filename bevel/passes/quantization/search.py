"""Look for the scales and zero points of blocks that leave the least error, without data.

By squared error (`clip`): from the grid that just spans a block, some are tried that span less of it, where the few
elements beyond are clipped and all others get finer steps. The best one's scale becomes the least-squares one of its
codes, the zero point the mean one, as often as that helps.

By |error|^0.7 (`hqq`), which forgives large errors of few elements: scales and zero points of the grid that spans the
block are fitted to what is left when such errors are taken out (half-quadratic splitting). Source: Badri and Shaji
2023, Half-Quadratic Quantization of Large Machine Learning Models. There, zero points are floats and scales stay; whole
zero points that are read fast would hardly move, so scales move here.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.passes.formats import Format, Grid
from bevel.passes.formats.blocks import ENTRIES, Part, each_part, long_rows
from bevel.passes.formats.integers import Integers

Array = np.ndarray[Any, Any]

# How much of its block a grid spans.
SPANS: Final = (1.07, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.62)
REFITS: Final = 2
SQUARED: Final = 2.0
# The exponent of the half-quadratic error, how many fits it takes, how much is forgiven at first, and how that shrinks.
FORGIVING: Final = 0.7
FITS: Final = 8
BETA: Final = 10.0
FASTER: Final = 1.01
# The power of an error of nothing is infinite.
LEAST: Final = 1e-8
# Products of blocks, summed over their entries, by how many others there are.
SUM: Final = {1: "obei,obei->obi", 2: "obei,obei,obei->obi"}
# In the type of what they are used with.
NOTHING: Final = np.float32(0)
SIGN: Final = np.uint32(1 << 31)


@dataclass(frozen=True)
class Measure:
    """What the error of a block is: the sum of |error|^power, each element with its weight if there are weights."""

    power: float = SQUARED

    def __call__(self, fmt: Format, blocks: Array, grid: Grid, weights: Array | None) -> Array:
        """Return the error of each block on a grid."""
        misses = fmt.misses(blocks, grid)
        if self.power == SQUARED:
            others = (misses,) if weights is None else (misses, weights)
            total = np.einsum(SUM[len(others)], misses, *others)
        else:
            misses = _sizes(misses)
            np.power(misses, np.float32(self.power), out=misses)
            total = misses.sum(ENTRIES) if weights is None else np.einsum(SUM[1], misses, weights)
        total = np.expand_dims(total, ENTRIES)
        total *= np.abs(grid.scale) ** np.float32(self.power)
        return total

    def without_outliers(self, blocks: Array, units: Array, grid: Grid, step: int) -> Array:
        """Return what scales are to be fitted to: all of the blocks, or without the part of errors that is forgiven."""
        if self.power == SQUARED:
            return blocks
        values = units * grid.scale
        error = np.subtract(blocks, values, out=values)
        forgiven = _sizes(error)
        kept = np.power(forgiven, np.float32(self.power - 1))
        kept /= np.float32(BETA * FASTER**step)
        forgiven -= kept
        np.maximum(forgiven, NOTHING, out=forgiven)
        signed = forgiven.view(np.uint32)  # the sign is a bit, which costs less than a product
        signed |= error.view(np.uint32) & SIGN
        return np.subtract(blocks, forgiven, out=forgiven)


def _sizes(error: Array) -> Array:
    """Return magnitudes, none of them zero, as an array of its own."""
    sizes: Array = np.abs(error)
    sizes += np.float32(LEAST)
    return sizes


def search(
    fmt: Format,
    blocks: Array,
    base: float,
    power: float = SQUARED,
    weights: Array | None = None,
    codes: Array | None = None,
) -> Grid:
    """Return the grid `[outer, blocks, 1, inner]` of least error found; `weights` are of the elements of blocks.

    The nearest codes of the blocks are written into `codes`, if given.
    """
    shape = (*blocks.shape[:2], 1, blocks.shape[3])
    scale, zero = np.empty(shape, np.float32), np.empty(shape, np.float32) if fmt.zero_bits else None
    rows, heavy = long_rows(blocks), None if weights is None else long_rows(weights)

    def work(part: Part) -> None:
        piece = np.ascontiguousarray(rows[part], np.float32)
        found = _search(fmt, piece, base, Measure(power), None if heavy is None else np.ascontiguousarray(heavy[part]))
        long_rows(scale)[part] = found.scale
        if zero is not None:
            long_rows(zero)[part] = found.zero
        if codes is not None:
            fmt.encoded(piece, found, long_rows(codes)[part])

    each_part(rows.shape, work, len(SPANS))
    return Grid(scale, zero)


def _search(fmt: Format, blocks: Array, base: float, measure: Measure, weights: Array | None) -> Grid:
    first = best = fmt.grid(blocks, base)
    least = measure(fmt, blocks, best, weights)
    squared = measure.power == SQUARED
    for span in SPANS if squared else ():
        trial = Grid(fmt.snap(first.scale * np.float32(span), base), first.zero)
        best, least = _better(best, least, trial, measure(fmt, blocks, trial, weights))
    return _fitted(fmt, blocks, best, least, base, measure, weights)


def _fitted(
    fmt: Format, blocks: Array, grid: Grid, least: Array, base: float, measure: Measure, weights: Array | None
) -> Grid:
    """Return the grid with scales and zero points that fit the codes of blocks, as often as that helps a block."""
    scale, zero = grid.scale.flatten(), None if grid.zero is None else grid.zero.flatten()
    shape, places = grid.scale.shape, np.arange(scale.size)
    for step in range(REFITS if measure.power == SQUARED else FITS):
        units = fmt.units(blocks, grid)
        target = measure.without_outliers(blocks, units, grid, step)
        trial = _refit(fmt, target, units, grid, base, weights)
        found = measure(fmt, blocks, trial, weights)
        (wins,) = np.nonzero((found < least).reshape(-1))
        places = places[wins]
        if not places.size:
            break
        # Whom a fit does not help is left alone.
        blocks, least = _columns(blocks, wins), _columns(found, wins)
        weights = None if weights is None else _columns(weights, wins)
        grid = Grid(_columns(trial.scale, wins), None if trial.zero is None else _columns(trial.zero, wins))
        scale[places] = grid.scale.reshape(-1)
        if zero is not None and grid.zero is not None:
            zero[places] = grid.zero.reshape(-1)
    return Grid(scale.reshape(shape), None if zero is None else zero.reshape(shape))


def _columns(blocks: Array, places: Array) -> Array:
    """Return some of the blocks, counted through, as `[1, 1, block, places]`."""
    rows = np.moveaxis(blocks, ENTRIES, 0).reshape(blocks.shape[ENTRIES], -1)
    return rows.take(places, axis=1)[None, None]


def _better(best: Grid, least: Array, trial: Grid, found: Array) -> tuple[Grid, Array]:
    """Return of each block the grid that leaves it the lesser error, and that error."""
    wins = found < least
    zero = None if best.zero is None or trial.zero is None else np.where(wins, trial.zero, best.zero)
    return Grid(np.where(wins, trial.scale, best.scale), zero), np.where(wins, found, least)


def _refit(fmt: Format, target: Array, units: Array, grid: Grid, base: float, weights: Array | None) -> Grid:
    """Return the least-squares scales of codes, given what these stand for, then the mean zero points."""
    heavy = units if weights is None else units * weights
    energy, match = (heavy * units).sum(ENTRIES, keepdims=True), (heavy * target).sum(ENTRIES, keepdims=True)
    scale = np.divide(match, energy, out=grid.scale.copy(), where=(energy > 0) & (match != 0))
    scale = fmt.snap(scale, base)
    if grid.zero is None or not isinstance(fmt, Integers):
        return Grid(scale, grid.zero)
    codes = units + grid.zero
    codes -= target / scale
    zero = np.rint(codes.mean(ENTRIES, keepdims=True))
    return Grid(scale, np.clip(zero, 0, fmt.highest))
