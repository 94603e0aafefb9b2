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

from bevel.passes.fitting.triangular import mirror

Array = np.ndarray[Any, Any]

# Share of the mean diagonal that is added to it: what GPTQ and SparseGPT use.
DAMPING: Final = 0.01
# An input that is always zero still needs a diagonal.
LEAST_DIAGONAL: Final = 1e-12
# Moments are sums in single precision: where they are all but constant, rounding can outweigh the damping.
MORE: Final = 10.0


class Damped:
    """A second moment `[n, n]` with something added to its diagonal, so that equations with it can be solved.

    `share` of the mean diagonal is added, ten times as much for as long as rounding keeps it from being positive; with
    `overwrite` to a moment in double precision itself, which is the damped one then.
    """

    def __init__(self, second: Array, share: float = DAMPING, *, overwrite: bool = False) -> None:
        from scipy.linalg import cho_factor  # here, for scipy takes 20 MB, and passes without data do without it

        self.matrix: Array = second if overwrite else np.array(second, np.float64)
        diagonal = np.einsum("ii->i", self.matrix)  # a view
        plain = diagonal.copy()
        level = abs(diagonal.sum()) / len(diagonal)
        extra = share * level + LEAST_DIAGONAL
        while True:
            diagonal[:] = plain + extra
            try:
                self._factor = cho_factor(self.matrix, lower=True, check_finite=True)
            except np.linalg.LinAlgError:
                extra = max(extra, DAMPING * level) * MORE
            else:
                return

    def solve(self, right: Array) -> Array:
        """Return `matrix^-1 right`."""
        from scipy.linalg import cho_solve

        solution: Array = cho_solve(self._factor, right, check_finite=False)
        return solution

    @property
    def root(self) -> Array:
        """The lower triangular `L` of which the matrix is `L L^T`."""
        return np.asarray(np.tril(self._factor[0]))

    def inverted(self) -> Array:
        """Return the inverse, in the memory of the factor: nothing can be solved afterwards."""
        from scipy.linalg.lapack import dpotri

        inverse, _ = dpotri(self._factor[0], lower=1, overwrite_c=1)
        del self._factor
        mirror(inverse)
        return np.asarray(inverse)


class SecondOrder:
    """The damped second moment `[n, n]` of a layer's input, and what follows from it.

    >>> h = SecondOrder(np.array([[1.0, 0.5], [0.5, 1.0]]), damping=0)
    >>> h.refit(np.array([[1.0, 1.0]]), np.array([0])).round(6).tolist()
    [[1.5]]
    >>> round(h.error(np.array([[1.0, 1.0]]), np.array([1])), 6)
    0.75
    """

    def __init__(self, second: Array, damping: float = DAMPING, *, overwrite: bool = False) -> None:
        self._damped = Damped(second, damping, overwrite=overwrite)

    @property
    def damped(self) -> Array:
        """The moment with its damping."""
        return self._damped.matrix

    @cached_property
    def inverse(self) -> Array:
        """The inverse of the damped moment."""
        return self._damped.inverted()

    def refit(self, w: Array, keep: Array) -> Array:
        """Return the weights `[out, kept]` that come closest to `w` `[out, n]` with the inputs kept alone."""
        best: Array = Damped(self.damped[np.ix_(keep, keep)], 0.0).solve(self.damped[keep] @ w.T).T
        return best

    def error(self, w: Array, drop: Array) -> float:
        """Return the least mean squared error of the output without the inputs `drop`."""
        return float(self.scores(w, np.asarray(drop)[None])[0])

    def scores(self, w: Array, units: Array) -> Array:
        """Return the error of dropping each unit alone; `units` lists the inputs of each, `[count, inputs of a unit]`.

        >>> SecondOrder(np.eye(2), damping=0).scores(np.array([[3.0, 1.0]]), np.array([[0], [1]])).round(6).tolist()
        [9.0, 1.0]
        """
        return errors(w, self.inverse, units)


def errors(w: Array, inverse: Array, units: Array) -> Array:
    """Return the error of dropping each unit alone, `[count]`, from the inverse of the damped moment."""
    parts = w.T[units]  # [count, inputs, out]
    grams = parts @ parts.transpose(0, 2, 1)
    blocks = inverse[units[:, :, None], units[:, None, :]]
    found: Array = np.trace(np.linalg.solve(blocks, grams), axis1=1, axis2=2)
    return found
