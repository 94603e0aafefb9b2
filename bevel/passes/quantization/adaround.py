"""Learn of every weight whether it is rounded down or up, then settle the codes one input at a time (AdaRound).

Between the values `a` and `b` around a weight stands `a + h(v) (b - a)`, with `h` a sigmoid that reaches 0 and 1. `v`
goes down the slope of the layer's squared error, which the second moments of its inputs `H` give without any sample,

    sum_o r_o^T H r_o,    r = a + h(v) (b - a) - w,    slope 2 H r,

and of a term that drives `h` away from 1/2, more sharply the further it gets. What this leaves of the error is mostly
that of inputs that move together, so then each input has the codes that are best while all others stay, as long as
that helps. Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization.
"""

from math import cos, pi
from typing import Any, Final

import numpy as np

from bevel.passes.fitting.second_order import Damped
from bevel.passes.formats import Format, Grid

Array = np.ndarray[Any, Any]

STEPS: Final = 500
RATE: Final = 0.1
# What keeps h from staying between 0 and 1, in units of the mean squared error of a weight; and its exponents.
PUSH: Final = 1.0
FREE: Final = 0.2
BLUNT, SHARP = 20.0, 2.0
# The sigmoid is stretched by so much beyond 0 and 1.
BEYOND: Final = 0.1
# The means of slopes and of their squares that Adam takes.
MEAN, SQUARE = 0.9, 0.999
LEAST: Final = 1e-8
SWEEPS: Final = 3


def adaptive(fmt: Format, weights: Array, grid: Grid, second: Array) -> tuple[Array, float]:
    """Return codes `[groups, in, out]` for weights, and the squared error they leave in the layer's output, relative.

    `grid` has the scale of every weight, `second` the second moments of the inputs `[groups, in, in]`.
    """
    codes, lost, energy = np.empty(weights.shape, np.uint8), 0.0, 0.0
    for group, moment in enumerate(second):
        damped = Damped(moment).matrix.astype(np.float32)
        given, its_grid = weights[group], grid[group]
        found = _settled(fmt, given, its_grid, damped, _learnt(fmt, given, its_grid, damped))
        codes[group] = found
        exact = moment.astype(np.float32)
        lost += _error(fmt.values(found, its_grid) - given, exact)
        energy += _error(given, exact)
    return codes, lost / energy if energy > 0 else 0.0


def _error(change: Array, moment: Array) -> float:
    return float(np.vdot(change, moment @ change))


def _learnt(fmt: Format, weights: Array, grid: Grid, moment: Array) -> Array:
    """Return the lower or the upper code of each weight."""
    low = _below(fmt, weights, grid)
    least = fmt.values(low, grid)
    gap = fmt.values(low + np.uint8(1), grid) - least
    share = np.clip((weights - least) / gap, 0, 1)
    v = np.log((share + BEYOND) / (1 + BEYOND - share))
    typical = float(np.diag(moment).mean()) * float(np.square(gap).mean())
    slope, square = np.zeros_like(v), np.zeros_like(v)
    for step in range(1, STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-v))
        raw = sigmoid * (1 + 2 * BEYOND) - BEYOND
        h = np.clip(raw, 0, 1)
        down = moment @ (least + h * gap - weights)
        down *= gap * (2 / typical)
        down -= _push(h, step / STEPS)
        down *= (raw == h) * sigmoid * (1 - sigmoid)
        slope += (1 - MEAN) * (down - slope)
        square += (1 - SQUARE) * (np.square(down) - square)
        v -= RATE * (slope / (1 - MEAN**step)) / (np.sqrt(square / (1 - SQUARE**step)) + LEAST)
    learnt: Array = low + (v >= 0)
    return learnt.astype(np.uint8)


def _push(h: Array, done: float) -> Array:
    """Return the slope of `|2h - 1|^beta`, which is to grow to 1: none at first, then beta falls."""
    if done <= FREE:
        return np.zeros_like(h)
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
    """Return codes of which none is better for its input while all others stay; after some sweeps, nearly."""
    values = fmt.values(codes, grid)
    slopes = moment @ (values - weights)
    for _ in range(SWEEPS):
        for place in np.argsort(-np.diag(moment), kind="stable"):
            wanted = values[place] - slopes[place] / moment[place, place]
            codes[place] = fmt.codes(wanted, grid[place])
            change = fmt.values(codes[place], grid[place]) - values[place]
            slopes += moment[:, place, None] * change
            values[place] += change
    return codes
