"""Learn of every weight whether it is rounded down or up, then settle the codes one input at a time (AdaRound).

Between the values `a` and `b` around a weight stands `a + h(v) (b - a)`, with `h` a sigmoid that reaches 0 and 1. `v`
goes down the slope of the layer's squared error, which the second moments of its inputs `H` give without any sample,

    sum_o r_o^T H r_o,    r = a + h(v) (b - a) - w,    slope 2 H r,

and of a term that drives `h` away from 1/2, more sharply the further it gets. What this leaves of the error is mostly
that of inputs that move together, so then each input has the codes that are best while all others stay, as long as
that helps. The codes of GPTQ are settled likewise, and each output has those of both that lose less: the more bits, the
more often they are these. Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization.
"""

from math import cos, pi
from typing import Any, Final

import numpy as np

from bevel.passes.fitting.damping import damping
from bevel.passes.fitting.second_order import Damped
from bevel.passes.formats import Format, Grid
from bevel.passes.quantization.feedback import compensated

Array = np.ndarray[Any, Any]

STEPS: Final = 300
RATE: Final = 0.2
# What keeps h from staying between 0 and 1, in units of the mean squared error of a weight; and its exponents.
PUSH: Final = 1.0
FREE: Final = 0.2
BLUNT, SHARP = 20.0, 2.0
# The sigmoid is stretched by so much beyond 0 and 1.
BEYOND: Final = 0.1
# The means of slopes and of their squares that Adam takes.
MEAN, SQUARE = 0.9, 0.999
LEAST: Final = 1e-8
SWEEPS: Final = 6
# Inputs whose changes reach the others together, and outputs that are learnt together.
TOGETHER: Final = 32
OUTPUTS: Final = 128


def adaptive(fmt: Format, weights: Array, grid: Grid, second: Array, rows: int | None = None) -> tuple[Array, float]:
    """Return codes `[groups, in, out]` for weights, and the squared error they leave in the layer's output, relative.

    `grid` has the scale of every weight, `second` the second moments of the inputs `[groups, in, in]`, which were seen
    in so many rows; any number if none is given.
    """
    codes, _ = compensated(fmt, weights, grid, second, rows)
    lost, energy = 0.0, 0.0
    for group, moment in enumerate(second):
        damped, exact = Damped(moment, damping(moment, rows)).matrix.astype(np.float32), moment.astype(np.float32)
        given, its_grid = weights[group], grid[group]
        both = [
            _settled(fmt, given, its_grid, damped, each)
            for each in (codes[group], _learnt(fmt, given, its_grid, damped))
        ]
        errors = [_errors(fmt.values(each, its_grid) - given, damped) for each in both]
        codes[group] = np.where(errors[1] < errors[0], both[1], both[0])
        lost += float(_errors(fmt.values(codes[group], its_grid) - given, exact).sum())
        energy += float(_errors(given, exact).sum())
    return codes, lost / energy if energy > 0 else 0.0


def _errors(change: Array, moment: Array) -> Array:
    """Return the squared error of each output."""
    found: Array = np.einsum("io,io->o", change, moment @ change)
    return found


def _learnt(fmt: Format, weights: Array, grid: Grid, moment: Array) -> Array:
    """Return the lower or the upper code of each weight."""
    low = _below(fmt, weights, grid)
    least = fmt.values(low, grid)
    gap = fmt.values(low + np.uint8(1), grid) - least
    typical = float(np.diag(moment).mean()) * float(np.square(gap).mean())
    for start in range(0, weights.shape[1], OUTPUTS):
        some = np.s_[:, start : start + OUTPUTS]
        off, step = (np.ascontiguousarray(each[some]) for each in (least - weights, gap))
        low[some] += _upper(off, step, moment, np.float32(2 / typical))
    return low


def _upper(off: Array, gap: Array, moment: Array, steepness: np.float32) -> Array:
    """Return for some outputs where the upper code is learnt, given how far the lower one's value is off."""
    share = np.clip(-off / gap, 0, 1)
    v = np.log((share + BEYOND) / (1 + BEYOND - share))
    slope, square, steep = np.zeros_like(v), np.zeros_like(v), gap * steepness
    for step in range(1, STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-v))
        raw = sigmoid * (1 + 2 * BEYOND)
        raw -= BEYOND
        h = np.clip(raw, 0, 1)
        down = moment @ (h * gap + off)
        down *= steep
        if step > FREE * STEPS:
            down -= _push(h, step / STEPS)
        down *= raw == h
        down *= sigmoid - np.square(sigmoid)
        slope += (1 - MEAN) * (down - slope)
        square += (1 - SQUARE) * (np.square(down, out=down) - square)
        size = np.sqrt(square / (1 - SQUARE**step))
        size += LEAST
        v -= RATE / (1 - MEAN**step) * slope / size
    return v >= 0


def _push(h: Array, done: float) -> Array:
    """Return the slope of `|2h - 1|^beta`, which is to grow to 1; beta falls."""
    beta = SHARP + (BLUNT - SHARP) * (1 + cos(pi * (done - FREE) / (1 - FREE))) / 2
    away = 2 * h - 1
    slope: Array = np.sign(away) * np.abs(away) ** np.float32(beta - 1)
    slope *= np.float32(2 * PUSH * beta)
    return slope


def _below(fmt: Format, weights: Array, grid: Grid) -> Array:
    """Return the code of the greatest level not above each weight over its scale, but not the last."""
    codes = fmt.codes(weights, grid).astype(np.int16)
    above = (fmt.values(codes.astype(np.uint8), grid) - weights) / grid.scale > 0
    below: Array = np.clip(codes - above, 0, len(fmt.levels) - 2).astype(np.uint8)
    return below


def _settled(fmt: Format, weights: Array, grid: Grid, moment: Array, codes: Array) -> Array:
    """Return codes of which none is better for its input while all others stay; after some sweeps, nearly.

    What inputs change reaches those far from them some inputs later, in one matrix product.
    """
    from scipy.linalg.blas import sgemm  # here, for scipy takes 20 MB, and other roundings do without

    order = np.argsort(-np.diag(moment), kind="stable")
    moment, grid, codes = np.ascontiguousarray(moment[np.ix_(order, order)]), grid[order], codes[order]
    values = fmt.values(codes, grid)
    slopes = np.ascontiguousarray(moment @ (values - weights[order]))
    for _ in range(SWEEPS):
        moved = False
        for start in range(0, len(codes), TOGETHER):
            near = slice(start, start + TOGETHER)
            changes = _near(fmt, values[near], slopes[near].copy(), grid[near], moment[near, near], codes[near])
            if changes.any():
                moved = True
                sgemm(1, changes.T, moment[near], beta=1, c=slopes.T, overwrite_c=1)  # slopes += moment^T changes
        if not moved:
            break
    settled = np.empty_like(codes)
    settled[order] = codes
    return settled


def _near(fmt: Format, values: Array, slopes: Array, grid: Grid, moment: Array, codes: Array) -> Array:
    """Settle some inputs in place, and return by how much their values changed."""
    changes = np.empty_like(values)
    for place, value in enumerate(values):
        codes[place] = fmt.codes(value - slopes[place] / moment[place, place], grid[place])
        changes[place] = fmt.values(codes[place], grid[place]) - value
        slopes[place + 1 :] += moment[place + 1 :, place, None] * changes[place]
    values += changes
    return changes
