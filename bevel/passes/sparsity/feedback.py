"""Zero the weights of a layer column by column, and let the columns after it make up for each.

With the Cholesky factor `U` of the inverse moment, `H^-1 = U^T U`, dropping `w_j` while the inputs before `j` are
settled costs `(w_j / U_jj)^2` at best, which the weights after it reach by losing `w_j / U_jj * U_j,>j`. All outputs
are treated at once, each with a mask of its own; far columns follow a block later, in one matrix product. Source:
Frantar and Alistarh 2023, SparseGPT.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK: Final = 128


def prune(weights: Array, factors: Array, choose: Callable[[Array, int], Array], width: int = BLOCK) -> Array:
    """Zero weights `[groups, out, in]` in place, and return what was dropped.

    `factors` holds `U` by group. `choose(scores, start)` says which weights of the next `width` columns go (`width`
    divides the block), having seen what the columns before did to them.
    """
    dropped = np.zeros(weights.shape, bool)
    for start in range(0, weights.shape[2], BLOCK):
        stop = min(start + BLOCK, weights.shape[2])
        errors = _block(weights, dropped, factors, slice(start, stop), choose, width)
        weights[:, :, stop:] -= errors @ factors[:, start:stop, stop:]
    return dropped


def _block(
    weights: Array, dropped: Array, factors: Array, block: slice, choose: Callable[[Array, int], Array], width: int
) -> Array:
    part, gone, factor = weights[:, :, block], dropped[:, :, block], factors[:, block, block]
    diagonal = np.einsum("gii->gi", factor)
    errors = np.zeros(part.shape)
    for column in range(part.shape[2]):
        if column % width == 0:
            span = slice(column, column + width)
            gone[:, :, span] = choose((part[:, :, span] / diagonal[:, None, span]) ** 2, block.start + column)
        error = np.where(gone[:, :, column], part[:, :, column], 0) / diagonal[:, column, None]
        part[:, :, column:] -= error[:, :, None] * factor[:, column, None, column:]
        part[:, :, column][gone[:, :, column]] = 0.0
        errors[:, :, column] = error
    return errors


def factor(inverse: Array) -> Array:
    """Return the upper triangular `U` with `U^T U` the inverse moment."""
    return np.linalg.cholesky(inverse).T
