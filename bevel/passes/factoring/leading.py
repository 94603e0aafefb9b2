"""The best factors of one low rank, without a whole singular value decomposition."""

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

# Directions beside those that are wanted, and how often products widen what they span: measured on white noise, where
# no direction stands out, the first 8 of 1024 then hold 99% of what the best ones do; of real weights, all of it.
MORE: Final = 8
PRODUCTS: Final = 6


def leading_factors(matrix: Array, rank: int, root: Array | None = None) -> tuple[Array, Array]:
    """Return `down` `[in, rank]` and `up` `[rank, out]` whose product is nearest to a matrix `[in, out]`.

    Nearest is least squared error; with the root `L` `[in, in]` of the second moment `L L^T` of what the matrix is
    multiplied by, the least squared error of that product. Column by column both factors have the same norm.

    Source: Musco and Musco 2015, Randomized Block Krylov Methods.

    >>> down, up = leading_factors(np.array([[3.0, 0.0], [0.0, 1.0]]), 1)
    >>> (down @ up).round(9).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    left, values, right = _leading(matrix if root is None else root.T @ matrix, rank)
    down = left * values
    if root is not None:
        from scipy.linalg import solve_triangular  # here, as in `bevel.passes.fitting.second_order`

        down = solve_triangular(root, down, lower=True, trans="T")
    return _balanced(down, right)


def _leading(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """Return the first singular directions and values."""
    wide = rank + MORE
    if wide * (PRODUCTS + 1) >= min(matrix.shape):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _span(matrix, wide)
        left, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ left
    return left[:, :rank], values[:rank], right[:rank]


def _span(matrix: Array, wide: int) -> Array:
    """Return an orthonormal basis of what some made-up directions become, and what products make of them."""
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], wide)).astype(matrix.dtype)
    found = [np.linalg.qr(matrix @ start)[0]]
    for _ in range(PRODUCTS):
        found.append(np.linalg.qr(matrix @ (matrix.T @ found[-1]))[0])
    basis: Array = np.linalg.qr(np.concatenate(found, axis=1))[0]
    return basis


def _balanced(down: Array, up: Array) -> tuple[Array, Array]:
    sizes = np.linalg.norm(down, axis=0), np.linalg.norm(up, axis=1)
    factor = np.sqrt(np.divide(sizes[1], sizes[0], out=np.ones_like(sizes[0]), where=sizes[0] > 0))
    return down * factor, up / np.where(factor > 0, factor, 1)[:, None]
