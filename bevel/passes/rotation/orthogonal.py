"""Orthogonal matrices that spread what is in few entries over all of them: Hadamard's, for any size, and random ones.

A Hadamard matrix has entries of one magnitude, so that an outlier in one entry becomes `1 / sqrt(n)` of it in each.
They are known for powers of two (Sylvester) and for prime numbers plus one (Paley), and products of such. Where what is
left of a size is none of these, a cosine transform stands for it: orthogonal, and nearly as even.
"""

from math import isqrt
from typing import Any, Final

import numpy as np
import scipy

Array = np.ndarray[Any, Any]

# No model has dimensions with odd parts of more: the search for a construction ends.
LARGEST_PALEY: Final = 4096


def hadamard(size: int, random: np.random.Generator) -> Array:
    """Return a Hadamard matrix with columns of random sign, orthogonal, `[size, size]`; the first column is even.

    >>> matrix = hadamard(12, np.random.default_rng(0))
    >>> bool(np.allclose(np.abs(matrix), 12**-0.5)), bool(np.allclose(matrix @ matrix.T, np.eye(12)))
    (True, True)
    >>> bool(np.allclose(matrix[:, 0], 12**-0.5))
    True
    """
    matrix = even(size)
    signs = np.concatenate([[1.0], random.choice([-1.0, 1.0], size - 1)])
    return np.asarray(matrix * np.sign(matrix[:, :1]) * signs)


def mean_first(size: int) -> Array:
    """Return a reflection whose first row takes the mean: what follows it leaves the mean alone with its first column.

    >>> mean_first(4).round(6).tolist()[0], float(abs(mean_first(4)[1:].sum(axis=1)).max().round(6))
    ([0.5, 0.5, 0.5, 0.5], 0.0)
    """
    normal = np.full(size, size**-0.5)
    normal[0] -= 1
    length = float(normal @ normal)
    return np.eye(size) - np.outer(normal, normal) * (2 / length if length else 0.0)


def uniform(size: int, random: np.random.Generator) -> Array:
    """Return an orthogonal matrix drawn at random, all alike probable."""
    matrix, triangle = np.linalg.qr(random.standard_normal((size, size)))
    return np.asarray(matrix * np.sign(np.diag(triangle)))


def even(size: int) -> Array:
    """Return an orthogonal matrix with entries as even as a construction is known for; the first column always is.

    >>> [bool(np.allclose(np.abs(even(size)), size**-0.5)) for size in (2, 12, 28, 64, 768, 7)]
    [True, True, True, True, True, False]
    """
    odd, twos = size, 1
    while odd % 2 == 0:
        odd, twos = odd // 2, twos * 2
    inner = 1
    while inner <= twos and odd * inner <= LARGEST_PALEY:
        found = _paley(odd * inner)
        if found is not None:
            return np.kron(_sylvester(twos // inner), found)
        inner *= 2
    return np.kron(_sylvester(twos), scipy.fft.dct(np.eye(odd), axis=1, norm="ortho"))


def _sylvester(size: int) -> Array:
    return np.asarray(scipy.linalg.hadamard(size, dtype=np.float64) / size**0.5)


def _paley(size: int) -> Array | None:
    """Return a Hadamard matrix of a prime plus one, or twice that; None where there is none of this size."""
    if size <= 2:
        return _sylvester(size)
    if _is_prime(size - 1) and size % 4 == 0:
        return np.asarray((np.eye(size) + _bordered(size - 1, -1.0)) / size**0.5)
    half = size // 2
    if size % 4 == 0 and _is_prime(half - 1) and half % 4 == 2:
        core = _bordered(half - 1, 1.0)
        whole = np.kron(core, [[1.0, 1.0], [1.0, -1.0]]) + np.kron(np.eye(half), [[1.0, -1.0], [-1.0, -1.0]])
        return np.asarray(whole / size**0.5)
    return None


def _bordered(prime: int, sign: float) -> Array:
    """Return the conference matrix of a prime: squares and non-squares by differences, with a border of ones."""
    squares = np.unique(np.arange(1, prime) ** 2 % prime)
    character = np.full(prime, -1.0)
    character[squares], character[0] = 1.0, 0.0
    index = np.arange(prime)
    matrix = np.zeros((prime + 1, prime + 1))
    matrix[1:, 1:] = character[(index[:, None] - index) % prime]
    matrix[0, 1:], matrix[1:, 0] = 1.0, sign
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
