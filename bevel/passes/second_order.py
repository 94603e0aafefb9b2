"""What removing inputs of a linear layer costs, and how the others make up for it: second-order pruning in closed form.

With the second moment `H` of a layer's input (damped, so that it can be inverted), dropping the inputs `P` of `y = W x`
and keeping `K`:

    best weights left    W_K* = W H[:, K] H[K, K]^-1
    error they leave     E(P) = trace(W[:, P] (H^-1[P, P])^-1 W[:, P]^T)

the mean of the squared output error. Source: Hassibi and Stork 1992, Optimal Brain Surgeon; for groups of inputs
Kurtic et al. 2023, ZipLM.
"""

from functools import cached_property
from typing import Any, Final

import numpy as np
from scipy.linalg import cho_factor, cho_solve

Array = np.ndarray[Any, Any]

# Share of the mean diagonal that is added to it: what GPTQ and SparseGPT use.
DAMPING: Final = 0.01
# An input that is always zero still needs a diagonal.
LEAST_DIAGONAL: Final = 1e-12


class SecondOrder:
    """The damped second moment `[n, n]` of a layer's input, and what follows from it.

    >>> h = SecondOrder(np.array([[1.0, 0.5], [0.5, 1.0]]), damping=0)
    >>> h.refit(np.array([[1.0, 1.0]]), np.array([0])).round(6).tolist()
    [[1.5]]
    >>> round(h.error(np.array([[1.0, 1.0]]), np.array([1])), 6)
    0.75
    """

    def __init__(self, second: Array, damping: float = DAMPING) -> None:
        self.damped = np.array(second, np.float64)
        diagonal = np.einsum("ii->i", self.damped)
        diagonal += damping * diagonal.mean() + LEAST_DIAGONAL

    @cached_property
    def inverse(self) -> Array:
        """The inverse of the damped moment."""
        factor = cho_factor(self.damped, lower=True, check_finite=False)
        inverse: Array = cho_solve(factor, np.eye(len(self.damped)), overwrite_b=True, check_finite=False)
        return inverse

    def refit(self, w: Array, keep: Array) -> Array:
        """Return the weights `[out, kept]` that come closest to `w` `[out, n]` with the inputs kept alone."""
        factor = cho_factor(self.damped[np.ix_(keep, keep)], lower=True, check_finite=False)
        best: Array = cho_solve(factor, self.damped[keep] @ w.T, check_finite=False).T
        return best

    def error(self, w: Array, drop: Array) -> float:
        """Return the least mean squared error of the output without the inputs `drop`."""
        return float(self.scores(w, np.asarray(drop)[None])[0])

    def scores(self, w: Array, units: Array) -> Array:
        """Return the error of dropping each unit alone; `units` lists the inputs of each, `[count, inputs of a unit]`.

        >>> SecondOrder(np.eye(2), damping=0).scores(np.array([[3.0, 1.0]]), np.array([[0], [1]])).round(6).tolist()
        [9.0, 1.0]
        """
        parts = w.T[units]  # [count, inputs, out]
        grams = parts @ parts.transpose(0, 2, 1)
        blocks = self.inverse[units[:, :, None], units[:, None, :]]
        errors: Array = np.trace(np.linalg.solve(blocks, grams), axis1=1, axis2=2)
        return errors
