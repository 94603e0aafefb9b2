"""The Cholesky factor of a matrix of single precision, in place, mostly by products of large matrices.

LAPACK's own works in panels, and the one that comes with NumPy in double precision; halves of halves take a third less.
scipy is not needed.
"""

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

# Up to so many rows NumPy factors a matrix.
SMALL: Final = 64
# Rows that a product is subtracted from at a time, for it is made first.
STRIP: Final = 512


def factor(matrix: Array) -> None:
    """Put the lower triangular `L` in the place of a positive `L L^T`, and zeros above it; else raises `LinAlgError`.

    >>> found = np.array([[4.0, 2.0], [2.0, 5.0]], np.float32)
    >>> factor(found)
    >>> found.tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    """
    if len(matrix) <= SMALL:
        matrix[:] = np.linalg.cholesky(matrix)
        return
    middle = len(matrix) // 2
    left, rest = matrix[middle:, :middle], matrix[middle:, middle:]
    factor(matrix[:middle, :middle])
    _divide(left, matrix[:middle, :middle])
    for start in range(0, len(rest), STRIP):  # only what is read: the lower part
        some = slice(start, start + STRIP)
        rest[some, : some.stop] -= left[some] @ left[: some.stop].T
    matrix[:middle, middle:] = 0
    factor(rest)


def mirror(matrix: Array) -> None:
    """Put what is below the diagonal of a square above it as well.

    >>> found = np.array([[4.0, 7.0], [2.0, 5.0]])
    >>> mirror(found)
    >>> found.tolist()
    [[4.0, 2.0], [2.0, 5.0]]
    """
    for start in range(0, len(matrix), STRIP):
        stop = start + STRIP
        square = matrix[start:stop, start:stop]
        square[:] = np.tril(square) + np.tril(square, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T


def _divide(rows: Array, lower: Array) -> None:
    """Multiply rows by the transposed inverse of a lower triangular matrix, in place."""
    if len(lower) <= SMALL:
        rows[:] = rows @ np.linalg.inv(lower).T
        return
    middle = len(lower) // 2
    _divide(rows[:, :middle], lower[:middle, :middle])
    for start in range(0, len(rows), STRIP):
        some = slice(start, start + STRIP)
        rows[some, middle:] -= rows[some, :middle] @ lower[middle:, :middle].T
    _divide(rows[:, middle:], lower[middle:, middle:])
