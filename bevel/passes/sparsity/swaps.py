"""Better masks and better values for the weights that stay, judged by the error of the layer's output.

The error of an output's weights `w` against `w0` is `(w - w0) H (w - w0)^T`, with the gradient `2 (w - w0) H`. Zeroing
a kept `w_k` and giving a dropped `w_p` its best value changes it by

    w_k^2 H_kk - 2 w_k G_k - (G_p - w_k H_kp)^2 / H_pp,    G = (w - w0) H

A swap is taken where that is negative, the best one of each output in turn. This is a local search in the problem
of iCBS (Rosenberg et al. 2024: a binary quadratic program a block, which they anneal), with the layer's second moment.
"""

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

# Weights on either side that are paired: the cheapest to drop, and those most worth to have back.
CANDIDATES: Final = 16
# Swaps that one look for candidates serves.
REUSED: Final = 4
# Least gain of a swap, as a share of the error: less is rounding.
LEAST_GAIN: Final = 1e-9


class Local:
    """One group's weights `[out, in]` and mask, on their way to a lower error; `moment` is positive definite."""

    def __init__(self, original: Array, weights: Array, dropped: Array, moment: Array) -> None:
        self.original = original
        self.weights = weights
        self.dropped = dropped
        self.moment = moment
        self._diagonal = np.diag(moment)
        self._gradient = (weights - original) @ moment

    @property
    def errors(self) -> Array:
        """Return the error of each output."""
        total: Array = np.sum((self.weights - self.original) * self._gradient, axis=1)
        return total

    def swap(self, most: int, of: int = 0) -> int:
        """Swap kept and dropped weights, at most so many of an output, while that lowers its error; return how many.

        With `of`, only among the same `of` consecutive inputs.
        """
        total, left = 0, most if of <= self.weights.shape[1] else 0
        while left > 0:
            kept, back = self._pairs_within(of) if of else self._pairs()
            swapped = [self._exchange(kept, back) for _ in range(min(REUSED, left))]
            total, left = total + sum(swapped), left - len(swapped)
            if not swapped[0]:
                break
        return total

    def refit(self, steps: int) -> None:
        """Move the kept weights towards their best values by conjugate gradients, all outputs at once."""
        residual = np.where(self.dropped, 0.0, -self._gradient)
        scaled = residual / self._diagonal
        direction, power = scaled, np.sum(residual * scaled, axis=1)
        for _ in range(steps):
            image = direction @ self.moment
            step = _ratio(power, np.sum(direction * image, axis=1))[:, None]
            self.weights += step * direction
            self._gradient += step * image
            residual = residual - step * np.where(self.dropped, 0.0, image)
            scaled = residual / self._diagonal
            before, power = power, np.sum(residual * scaled, axis=1)
            direction = scaled + _ratio(power, before)[:, None] * direction

    def _pairs(self) -> tuple[Array, Array]:
        """Return for each output which weights are likely to be swapped: those to go, and those to come back."""
        cost = self.weights * (self.weights * self._diagonal - 2 * self._gradient)
        gain = self._gradient**2 / self._diagonal
        count = min(CANDIDATES, cost.shape[1])
        kept = np.argpartition(np.where(self.dropped, np.inf, cost), count - 1, axis=1)[:, :count]
        back = np.argpartition(np.where(self.dropped, -gain, np.inf), count - 1, axis=1)[:, :count]
        return kept[:, :, None], back[:, None, :]

    def _pairs_within(self, of: int) -> tuple[Array, Array]:
        """Return all pairs inside the same `of` inputs, for every output alike."""
        places = np.arange(self.weights.shape[1] // of * of).reshape(1, -1, of)
        return places[:, :, :, None], places[:, :, None, :]

    def _exchange(self, kept: Array, back: Array) -> int:
        """Make each output's best swap among the pairs, where that gains; return how many were made."""
        change = self._change(kept, back)
        best = change.reshape(len(change), -1).argmin(axis=1)
        gained = np.take_along_axis(change.reshape(len(change), -1), best[:, None], axis=1)[:, 0]
        rows = np.flatnonzero(gained < -LEAST_GAIN * np.abs(self.errors))
        goes, comes = (
            np.broadcast_to(side, change.shape).reshape(len(change), -1)[rows, best[rows]] for side in (kept, back)
        )
        self._apply(rows, goes, comes)
        return len(rows)

    def _change(self, kept: Array, back: Array) -> Array:
        """Return by how much swaps change the error; infinite where one side is not what it should be."""
        rows = np.arange(len(self.weights)).reshape(-1, *[1] * (kept.ndim - 1))
        lost = self.weights[rows, kept]
        cost = lost * (lost * self._diagonal[kept] - 2 * self._gradient[rows, kept])
        left = self._gradient[rows, back] - lost * self.moment[kept, back]
        possible = self.dropped[rows, back] & ~self.dropped[rows, kept]
        return np.where(possible, cost - left**2 / self._diagonal[back], np.inf)

    def _apply(self, rows: Array, kept: Array, back: Array) -> None:
        lost = self.weights[rows, kept]
        found = -(self._gradient[rows, back] - lost * self.moment[kept, back]) / self._diagonal[back]
        self.weights[rows, kept], self.weights[rows, back] = 0.0, found
        self.dropped[rows, kept], self.dropped[rows, back] = True, False
        self._gradient[rows] += found[:, None] * self.moment[back] - lost[:, None] * self.moment[kept]


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
