"""Rows of channels in arrays and graphs whose channels stand along any axis: the last, or that of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
Size = TypeVar("Size")

LAST = -1


def rows_of(array: Array, axis: int = LAST) -> Array:
    """Return an array as rows `[rows, channels]`.

    >>> rows_of(np.array([[[1, 2, 3], [4, 5, 6]]]), 1).tolist()
    [[1, 4], [2, 5], [3, 6]]
    """
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def in_shape(rows: Array, leading: Sequence[int], axis: int = LAST) -> Array:
    """Return rows with leading axes of these sizes, their channels along `axis`.

    >>> in_shape(np.array([[1, 4], [2, 5], [3, 6]]), [1, 3], 1).tolist()
    [[[1, 2, 3], [4, 5, 6]]]
    """
    return np.moveaxis(rows.reshape(*leading, rows.shape[-1]), -1, axis)


def leading(shape: Sequence[Size], axis: int = LAST) -> list[Size]:
    """Return the sizes of all axes but that of the channels.

    >>> leading((2, 8, 3, 4), 1)
    [2, 3, 4]
    """
    place = axis % len(shape)
    return [size for each, size in enumerate(shape) if each != place]


def to_last(rank: int, axis: int) -> list[int]:
    """Return the permutation of axes that puts the channels last.

    >>> to_last(4, 1)
    [0, 2, 3, 1]
    """
    return [*(each for each in range(rank) if each != axis), axis]


def from_last(rank: int, axis: int) -> list[int]:
    """Return the permutation of axes that takes the channels from the last axis to theirs.

    >>> from_last(4, 1)
    [0, 3, 1, 2]
    """
    return [int(each) for each in np.argsort(to_last(rank, axis))]
