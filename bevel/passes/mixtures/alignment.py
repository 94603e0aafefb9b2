"""Hidden entries of experts beside each other: how alike they are, in which order most, and which experts are near.

An expert computes the same whatever the order of its hidden entries. Experts that were trained apart have theirs in
orders that have nothing to do with each other, so that a mean of entries at the same place means nothing; before it,
each is put into the order in which it is most like another one (Ainsworth et al. 2023, Git Re-Basin).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from bevel.passes.mixtures.description import Expert

Array = np.ndarray[Any, Any]


def likeness(first: Expert, second: Expert) -> float:
    """Return the mean cosine of the weights of two experts, entry by entry in the orders that they have; 1 if equal."""
    if first.size != second.size:
        return 0.0
    left, right = first.rows(), second.rows()
    norms = np.linalg.norm(left) * np.linalg.norm(right)
    return float((left * right).sum() / max(float(norms), 1e-30))


def order(expert: Expert, like: Expert) -> Array:
    """Return the order of an expert's hidden entries in which its weights are most like another's."""
    return assigned(like.rows() @ expert.rows().T)


def order_by_activations(hidden: Array, like: Array) -> Array:
    """Return the order in which hidden entries, `[rows, entries]`, vary most like another expert's on the same rows."""
    return assigned(_standard(like).T @ _standard(hidden))


def _standard(hidden: Array) -> Array:
    centred = hidden - hidden.mean(0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12))


def assigned(scores: Array) -> Array:
    """Return for each row of a square matrix a column of its own, so that the sum of scores is largest.

    >>> assigned(np.array([[1.0, 3.0], [2.0, 3.5]])).tolist()
    [1, 0]
    """
    return np.asarray(linear_sum_assignment(scores, maximize=True)[1])


def mean(experts: Sequence[Expert], shares: Array) -> Expert:
    """Return the weighted mean of experts of one size; shares add up to one."""

    def averaged(arrays: Sequence[Array]) -> Array:
        first = arrays[0]
        if all(np.array_equal(array, first) for array in arrays):
            return first  # not rounded
        return np.asarray(sum(share * array.astype(np.float64) for share, array in zip(shares, arrays, strict=True)))

    count = len(experts[0].ups)
    return Expert(
        tuple(averaged([expert.ups[place] for expert in experts]) for place in range(count)),
        tuple(averaged([expert.biases[place] for expert in experts]) for place in range(count)),
        averaged([expert.down for expert in experts]),
        averaged([expert.constant for expert in experts]),
    )


def joined(experts: Sequence[Expert]) -> Expert:
    """Return one layer with the hidden entries of all experts: their sum."""
    count = len(experts[0].ups)
    return Expert(
        tuple(np.concatenate([expert.ups[place] for expert in experts], axis=1) for place in range(count)),
        tuple(np.concatenate([expert.biases[place] for expert in experts]) for place in range(count)),
        np.concatenate([expert.down for expert in experts]),
        np.asarray(sum(expert.constant for expert in experts)),
    )


def clusters(nearness: Array, count: int) -> list[list[int]]:
    """Join experts into so many groups, each time those two that are nearest on average over their members.

    >>> clusters(np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]]), 2)
    [[0, 2], [1]]
    """
    groups = [[expert] for expert in range(len(nearness))]
    while len(groups) > count:
        pairs = [(left, right) for left in range(len(groups)) for right in range(left)]
        left, right = max(pairs, key=lambda pair: float(nearness[np.ix_(groups[pair[0]], groups[pair[1]])].mean()))
        groups[right] += groups.pop(left)
    return sorted(sorted(group) for group in groups)


def nearness_of_outputs(outputs: Array) -> Array:
    """Return one minus the relative distance of what experts give, `[experts, rows, channels]`: from 0 to 1."""
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    square = np.square(flat).sum(1)
    distance = np.maximum(square[:, None] + square[None] - 2 * flat @ flat.T, 0)
    return np.asarray(1 - np.sqrt(distance / np.maximum(2 * (square[:, None] + square[None]), 1e-30)))


def nearness_of_weights(experts: Sequence[Expert], like: int) -> Array:
    """Return how alike the weights of experts are, each in the order in which it is most like one of them."""
    ordered = [expert.ordered(order(expert, experts[like])) for expert in experts]
    return np.array([[likeness(first, second) for second in ordered] for first in ordered])
