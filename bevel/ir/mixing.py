"""Multiply tensors along dimensions, wherever those stand within an axis, by factors or by matrices."""

from __future__ import annotations

from typing import Final

import numpy as np

from bevel.ir.axes import Axis, Dim, Product, resolve

Path = tuple[int, ...]

# A vector shorter than this is the difference of two equal ones, rounded.
_NOTHING: Final = 1e-12


def mixed(array: np.ndarray, axis: Axis, path: Path, factor: np.ndarray) -> np.ndarray:
    """Multiply the first axis of an array where a path leads within it: by a vector, entry by entry, or by a matrix.

    >>> from bevel.ir.axes import product, total
    >>> half = Dim(1)
    >>> mixed(np.array([1.0, 2.0]), total(half, half), (1,), np.array([[3.0]]))
    array([1., 6.])
    >>> mixed(np.arange(4.0), product(Dim(2), Dim(2)), (0,), np.array([1.0, 10.0]))
    array([ 0.,  1., 20., 30.])
    """
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return _times(factor, array)
    first, *deeper = path
    if isinstance(axis, Product):
        inner = int(np.prod([each.size for each in axis.factors[first + 1 :]], dtype=np.int64))
        part = array.reshape(-1, axis.factors[first].size, inner, *array.shape[1:])
        result = mixed(np.moveaxis(part, 1, 0), axis.factors[first], tuple(deeper), factor)
        return np.moveaxis(result, 0, 1).reshape(array.shape)
    start = sum(each.size for each in axis.terms[:first])
    stop = start + axis.terms[first].size
    middle = mixed(array[start:stop], axis.terms[first], tuple(deeper), factor)
    return np.concatenate([array[:start], middle, array[stop:]])


def _times(factor: np.ndarray, array: np.ndarray) -> np.ndarray:
    if factor.ndim == 1:
        return np.asarray(factor.reshape(-1, *[1] * (array.ndim - 1)) * array)
    return np.asarray(np.tensordot(factor, array, 1))


def powered(factor: np.ndarray, power: int) -> np.ndarray:
    """Return a vector or matrix to a power; a negative one is that of the inverse of the transpose."""
    if factor.ndim == 1:
        return np.asarray(factor ** float(power))
    base = factor if power > 0 else np.linalg.inv(factor).T
    return np.asarray(np.linalg.matrix_power(base, abs(power)))


def keeping_mean(matrix: np.ndarray) -> np.ndarray:
    """Return the orthogonal matrix nearest at hand that keeps the mean: reflected so that its rows add up to one.

    >>> keeping_mean(np.array([[0.0, -1.0], [1.0, 0.0]])).sum(axis=1).round(6).tolist()
    [1.0, 1.0]
    """
    ones = np.full(len(matrix), len(matrix) ** -0.5)
    normal = matrix @ ones - ones
    length = float(normal @ normal)
    if length < _NOTHING:
        return matrix
    return np.asarray(matrix - np.outer(normal, normal @ matrix) * (2 / length))
