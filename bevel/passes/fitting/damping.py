"""How much to damp a second moment, judged by how many rows it is of.

What makes up for an input is a regression on the others, and few rows can be met exactly by many inputs: what fits them
best serves other rows badly. Damping holds back. Which share `a` of the mean diagonal serves best is foretold by
generalized cross-validation, from the moment `S` of `n` rows alone. With `S + a level I = L L^T`, of input `j` is left,
once those before it have explained what they can,

    L_jj^2 g_j / (1 - sum_i<j g_i / n)^2        g_j = (L^-1 S L^-T)_jj: the degrees of freedom that it takes

on rows not seen, and the sum over all `j` is to be least. Source: Golub, Heath and Wahba 1979, Generalized
Cross-Validation; that one factor gives it for every leading part of the inputs is ours.
"""

from typing import Any, Final

import numpy as np

from bevel.passes.fitting.second_order import DAMPING, LEAST_DIAGONAL
from bevel.passes.fitting.triangular import factor

Array = np.ndarray[Any, Any]

# Rows of one sample follow each other: so many count as one.
ALIKE: Final = 2
# With so many rows an input there is nothing to choose.
PLENTY: Final = 16
# Shares that are tried, in rising order, until one serves worse than that before it.
SHARES: Final = (DAMPING, 0.03, 0.1, 0.3, 1.0, 3.0)


def apart(rows: int, samples: int) -> int:
    """Return as how many rows that have nothing to do with each other those of so many samples count."""
    return max(samples, rows // ALIKE)


def damping(second: Array, rows: int | None) -> float:
    """Return the share of the mean diagonal of a moment `[n, n]` that is to be added to it.

    `rows` is of how many rows it is that have nothing to do with each other; of any number if none is given.

    >>> moment = np.eye(4) + 0.5
    >>> damping(moment, 1000), damping(moment, 6)
    (0.01, 3.0)
    """
    if rows is None or rows >= PLENTY * len(second):
        return DAMPING
    best, least = DAMPING, np.inf
    single = second.astype(np.float32)
    for share in SHARES:
        left = _unexplained(single, share, rows)
        if left > least:
            break
        best, least = share, left
    return best


def _unexplained(second: Array, share: float, rows: int) -> float:
    """Return what rows not seen would leave of all inputs; infinity where there are fewer rows than those explain.

    Single precision does, in half the time: what is added is far above its rounding.
    """
    from scipy.linalg.lapack import strtri

    extra = share * float(np.trace(second)) / len(second) + LEAST_DIAGONAL
    lower = second.copy()
    lower[np.diag_indices_from(lower)] += np.float32(extra)
    try:
        factor(lower)
    except np.linalg.LinAlgError:
        return float(np.inf)
    squares = np.square(np.diag(lower), dtype=np.float64)
    inverse, _ = strtri(lower.T, overwrite_c=1)  # transposed, so that it takes no memory of its own
    taken = 1 - extra * np.einsum("ij,ij->j", inverse, inverse, dtype=np.float64)
    before = np.cumsum(taken) - taken
    if not before[-1] < rows:
        return float(np.inf)
    return float((squares * taken / (1 - before / rows) ** 2).sum())
