"""How much each layer gives up of a budget that all share: one price for all, by the damage per weight."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from bevel.passes.fitting.second_order import SecondOrder

Array = np.ndarray[Any, Any]

# Of the share that stays on the whole, every layer keeps at least so much (as LPViT does).
LEAST_KEPT: Final = 0.5
# Steps that a layer's curve of damage against zeros is cut into, where its weights go one by one.
STEPS: Final = 256


def by_slope(slopes: Sequence[Array], sizes: Sequence[Array], share: float) -> list[int]:
    """Return how many units each layer gives up: those that damage least per weight, until a share of all is gone.

    `slopes` are each unit's damage per weight, `sizes` its weights. Summed from the gentlest on, damage is convex, so
    one slope for all layers is the optimum (LPViT's Lagrangian), found by sorting.

    >>> by_slope([np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.25])], [np.ones(4), np.ones(2)], 0.5)
    [2, 1]
    """
    most = 1 - LEAST_KEPT * (1 - share)
    orders = [np.argsort(slope, kind="stable")[: int(most * len(slope))] for slope in slopes]
    owner = np.concatenate([np.full(len(order), place) for place, order in enumerate(orders)])
    damage = np.concatenate([slope[order] for slope, order in zip(slopes, orders, strict=True)])
    weight = np.concatenate([size[order] for size, order in zip(sizes, orders, strict=True)])
    first = np.argsort(damage, kind="stable")
    reached = np.cumsum(weight[first])
    needed = share * sum(float(size.sum()) for size in sizes)
    taken = int(np.searchsorted(reached, needed * (1 - 1e-12))) + 1 if needed > 0 else 0
    counts = np.bincount(owner[first[:taken]], minlength=len(slopes))
    return [int(count) for count in counts]


def curve(scores: Array) -> tuple[Array, Array]:
    """Cut the scores of single weights into steps, the lowest first: the mean of each, and how many it has.

    >>> curve(np.array([4.0, 1.0]))
    (array([1., 4.]), array([1., 1.]))
    """
    parts = np.array_split(np.sort(scores, axis=None), min(STEPS, scores.size))
    return np.array([part.mean() for part in parts]), np.array([float(len(part)) for part in parts])


def counts_by_slope(curves: Sequence[tuple[Array, Array]], share: float) -> list[int]:
    """Return how many single weights each layer gives up, a share of all to the very one."""
    slopes, sizes = zip(*curves, strict=True)
    counts = [int(size[:steps].sum()) for size, steps in zip(sizes, by_slope(slopes, sizes, share), strict=True)]
    over = sum(counts) - round(share * sum(float(size.sum()) for size in sizes))
    counts[int(np.argmax(counts))] -= over
    return counts


def energy(weights: Array, moments: Sequence[SecondOrder]) -> float:
    """Return the mean square of a layer's output, or the square of its weights where inputs were not looked at."""
    squares = np.stack([w @ h.damped for w, h in zip(weights, moments, strict=True)]) if moments else weights
    return max(float(np.sum(squares * weights)), float(np.finfo(float).tiny))
