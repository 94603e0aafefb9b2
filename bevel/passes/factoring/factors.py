"""The best approximations of a layer's matrices by products of two thin ones.

With the second moment `H = L L^T` of a layer's input, or the identity where nothing is known of it, the mean squared
error of the output is the squared Frobenius norm of `(W - W') L`. So the best `W'` of rank `r` are the first `r`
singular directions of `W L`, and what is lost is the squares of the other singular values:

    W L = U S V^T        W' = U_r S_r (V_r^T L^-1)        error = sum of s_i^2 for i > r

Source: Eckart and Young 1936; in the metric of the inputs Wang et al. 2024, SVD-LLM.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from bevel.passes.fitting.damping import damping
from bevel.passes.fitting.second_order import Damped

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Factors:
    """The best factors of every rank: the first columns of `up` and the first rows of `down`.

    `up` is `[groups, out, ranks]`, `down` `[groups, ranks, in]`. `energies` are the squared singular values of all
    groups together, in descending order.
    """

    up: Array
    down: Array
    energies: Array

    def of(self, rank: int) -> tuple[Array, Array]:
        """Return the two factors of a rank, in memory of their own."""
        return self.up[:, :, :rank].copy(), self.down[:, :rank].copy()

    def lost(self, rank: int) -> float:
        """Return the share of the squared output that a rank leaves out."""
        return float(losses(self.energies)[rank])


def losses(energies: Array) -> Array:
    """Return the share of the energy that is lost at ranks 0, 1, 2 and so on.

    >>> losses(np.array([3.0, 1.0])).tolist()
    [1.0, 0.25, 0.0]
    """
    rest = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
    shares: Array = rest / rest[0] if rest[0] > 0 else np.zeros_like(rest)
    return shares


def best_factors(weights: Array, second: Array | None = None, rows: int | None = None) -> Factors:
    """Return the factors of matrices `[groups, out, in]`, in the metric of second moments `[groups, in, in]` if given.

    These are of so many rows; of any number if none is given. Each singular value is shared evenly between both
    factors, so that neither is much larger than the other.

    >>> factors = best_factors(np.array([[[2.0, 0.0], [0.0, 1.0]]]))
    >>> factors.energies.tolist(), factors.lost(1)
    ([4.0, 1.0], 0.2)
    """
    roots = [None] * len(weights) if second is None else [Damped(each, damping(each, rows)).root for each in second]
    parts = [_svd(w, root) for w, root in zip(weights, roots, strict=True)]
    up, down, energies = (np.stack(each) for each in zip(*parts, strict=True))
    return Factors(up, down, energies.sum(0))


def _svd(w: Array, root: Array | None) -> tuple[Array, Array, Array]:
    left, values, right = np.linalg.svd(w if root is None else w @ root, full_matrices=False)
    if root is not None:
        right = solve_triangular(root, right.T, lower=True, trans="T").T
    half = np.sqrt(values)
    return left * half, half[:, None] * right, values**2
