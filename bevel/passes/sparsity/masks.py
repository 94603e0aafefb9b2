"""Which weights of a layer become zero: the lowest scores, of the whole layer, of each output, or of every few inputs.

Scores are `[groups, out, in]`, as `bevel.passes.fitting.layers` has weights; masks say True where a weight is dropped.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def lowest(scores: Array, count: int) -> Array:
    """Drop the `count` lowest scores of all.

    >>> lowest(np.array([[[3.0, 1.0], [2.0, 0.5]]]), 2).tolist()
    [[[False, True], [False, True]]]
    """
    dropped = np.zeros(scores.size, bool)
    if count:
        dropped[np.argpartition(scores, count - 1, axis=None)[:count]] = True
    return dropped.reshape(scores.shape)


def lowest_by_output(scores: Array, share: float) -> Array:
    """Drop the same share of every output's weights, as nearly as whole numbers allow; the total is exact.

    >>> lowest_by_output(np.arange(6.0).reshape(1, 2, 3), 0.5).sum((0, 2)).tolist()
    [2, 1]
    """
    rows, width = scores.shape[0] * scores.shape[1], scores.shape[2]
    ends = np.array([wanted(share, row * width) for row in range(rows + 1)])
    return _ranks(scores) < np.diff(ends).reshape(*scores.shape[:2], 1)


def lowest_of_every(scores: Array, zeros: int, of: int) -> Array:
    """Drop `zeros` of every `of` consecutive inputs of an output; what is left at the end stays.

    >>> lowest_of_every(np.array([[[4.0, 1.0, 2.0, 3.0, 0.0]]]), 2, 4).tolist()
    [[[False, True, True, False, False]]]
    """
    whole = scores.shape[-1] // of * of
    dropped = np.zeros(scores.shape, bool)
    parts = scores[..., :whole].reshape(*scores.shape[:-1], whole // of, of)
    dropped[..., :whole] = (_ranks(parts) < zeros).reshape(*scores.shape[:-1], whole)
    return dropped


def wanted(share: float, size: int) -> int:
    """Return how many of `size` weights a share is."""
    return round(share * size)


def _ranks(scores: Array) -> Array:
    """Return the place of each score in the order of its row; equal ones in the order in which they stand."""
    ranks = np.empty(scores.shape, np.int64)
    order = np.argsort(scores, axis=-1, kind="stable")
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(scores.shape[-1]), scores.shape), axis=-1)
    return ranks
