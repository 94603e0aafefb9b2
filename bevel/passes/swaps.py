"""Better masks and better values for the weights that stay, judged by the error of the layer's output.

The error of an output's weights `w` against `w0` is `(w - w0) H (w - w0)^T`, with the gradient `2 (w - w0) H`. Zeroing
a kept `w_k` and giving a dropped `w_p` its best value changes it by

    w_k^2 H_kk - 2 w_k G_k - (G_p - w_k H_kp)^2 / H_pp,    G = (w - w0) H

A swap is taken where that is negative, the best one of each output in each round. This is a local search in the problem
of iCBS (Rosenberg et al. 2024: a binary quadratic program a block, which they anneal), with the layer's second moment.
"""

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

# Weights on either side that are paired in a round: the cheapest to drop, and those most worth to have back.
CANDIDATES: Final = 16
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

    def swap(self, rounds: int, of: int = 0) -> int:
        """Swap kept and dropped weights for so many rounds, or until no output gains; return how many were swapped.

        With `of`, only among the same `of` consecutive inputs.
        """
        total = 0
        for _ in range(rounds if of <= self.weights.shape[1] else 0):
            gains, kept, back = self._best_within(of) if of else self._best()
            rows = np.flatnonzero(gains < -LEAST_GAIN * np.abs(self.errors))
            if not len(rows):
                break
            self._apply(rows, kept[rows], back[rows])
            total += len(rows)
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

    def _costs(self) -> tuple[Array, Array]:
        """Return what dropping each kept weight costs, and what each dropped one brings back (infinite elsewhere)."""
        cost = self.weights * (self.weights * self._diagonal - 2 * self._gradient)
        gain = self._gradient**2 / self._diagonal
        return np.where(self.dropped, np.inf, cost), np.where(self.dropped, gain, -np.inf)

    def _best(self) -> tuple[Array, Array, Array]:
        """Return each output's best swap among the likeliest: its change of the error, what goes, what comes back."""
        cost, gain = self._costs()
        count = min(CANDIDATES, cost.shape[1])
        kept = np.argpartition(cost, count - 1, axis=1)[:, :count]
        back = np.argpartition(-gain, count - 1, axis=1)[:, :count]
        change = self._change(kept[:, :, None], back[:, None, :], cost)
        best = change.reshape(len(change), -1).argmin(axis=1)
        rows = np.arange(len(change))
        left, right = np.divmod(best, count)
        return change[rows, left, right], kept[rows, left], back[rows, right]

    def _best_within(self, of: int) -> tuple[Array, Array, Array]:
        """Return each output's best swap inside the same `of` inputs."""
        cost, _ = self._costs()
        whole = cost.shape[1] // of * of
        places = np.arange(whole).reshape(-1, of)
        kept, back = np.broadcast_arrays(places[None, :, :, None], places[None, :, None, :])
        change = self._change(kept, back, cost)
        rows, best = np.arange(len(change)), change.reshape(len(change), -1).argmin(axis=1)
        return change.reshape(len(change), -1)[rows, best], kept.reshape(-1)[best], back.reshape(-1)[best]

    def _change(self, kept: Array, back: Array, cost: Array) -> Array:
        """Return by how much swaps change the error; infinite where one side is not what it should be."""
        rows = np.arange(len(cost)).reshape(-1, *[1] * (kept.ndim - 1))
        left = self._gradient[rows, back] - self.weights[rows, kept] * self.moment[kept, back]
        change = cost[rows, kept] - left**2 / self._diagonal[back]
        return np.where(self.dropped[rows, back], change, np.inf)

    def _apply(self, rows: Array, kept: Array, back: Array) -> None:
        lost = self.weights[rows, kept]
        found = -(self._gradient[rows, back] - lost * self.moment[kept, back]) / self._diagonal[back]
        self.weights[rows, kept], self.weights[rows, back] = 0.0, found
        self.dropped[rows, kept], self.dropped[rows, back] = True, False
        self._gradient[rows] += found[:, None] * self.moment[back] - lost[:, None] * self.moment[kept]


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
