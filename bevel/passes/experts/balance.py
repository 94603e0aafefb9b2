"""Put items into clusters of one size."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy.optimize import linear_sum_assignment

Array = np.ndarray[Any, Any]

# The exact assignment takes the cube of the items; up to this many it is done in a fraction of a second.
MOST_EXACT: Final = 512
ROUNDS: Final = 10


def deal(costs: Array) -> Array:
    """Return the cluster of each item, given what it costs there, `[items, clusters]`; all clusters get as many.

    Exact for few items; else whoever would lose most by its second choice chooses first.

    >>> deal(np.array([[0.0, 1.0], [0.0, 5.0], [0.0, 2.0], [0.0, 9.0]])).tolist()
    [1, 0, 1, 0]
    """
    items, clusters = costs.shape
    room = items // clusters
    assert room * clusters == items
    if items <= MOST_EXACT:
        rows, columns = linear_sum_assignment(np.repeat(costs, room, axis=1))
        return np.asarray(columns[np.argsort(rows)] // room)
    return _greedy(costs, room)


def _greedy(costs: Array, room: int) -> Array:
    """Fill clusters; when one is full, those left choose again among the others."""
    items, clusters = costs.shape
    owners = np.full(items, -1)
    left = np.full(clusters, room)
    open_costs = costs.astype(np.float64).copy()
    while (free := np.flatnonzero(owners < 0)).size:
        part = open_costs[free]
        choice = part.argmin(1)
        best = part[np.arange(len(free)), choice]
        regret = np.partition(part, 1, axis=1)[:, 1] - best if np.isfinite(part[0]).sum() > 1 else -best
        for cluster in np.unique(choice):
            wanting = free[choice == cluster]
            first = wanting[np.argsort(-regret[choice == cluster], kind="stable")][: left[cluster]]
            owners[first] = cluster
            left[cluster] -= len(first)
        open_costs[:, left == 0] = np.inf
    return owners


def clusters(points: Array, count: int, rng: np.random.Generator, rounds: int = ROUNDS) -> Array:
    """Return the cluster of each point by k-means with clusters of one size.

    >>> points = np.array([[0.0], [9.0], [0.1], [9.1]])
    >>> owners = clusters(points, 2, np.random.default_rng(0))
    >>> bool(owners[0] == owners[2] != owners[1] == owners[3])
    True
    """
    centres = _seeds(points, count, rng)
    owners = deal(distances(points, centres))
    for _ in range(rounds):
        centres = np.stack([points[owners == cluster].mean(0) for cluster in range(count)])
        again = deal(distances(points, centres))
        if np.array_equal(again, owners):
            break
        owners = again
    return owners


def _seeds(points: Array, count: int, rng: np.random.Generator) -> Array:
    """Choose points that are far from each other (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    nearest = distances(points, points[chosen])[:, 0]
    while len(chosen) < count:
        total = nearest.sum()
        shares = nearest / total if total > 0 else np.full(len(points), 1 / len(points))
        chosen.append(int(rng.choice(len(points), p=shares)))
        nearest = np.minimum(nearest, distances(points, points[chosen[-1:]])[:, 0])
    return np.asarray(points[chosen])


def distances(points: Array, centres: Array) -> Array:
    """Return squared distances, `[points, centres]`."""
    squared = np.square(points).sum(1)[:, None] - 2 * points @ centres.T + np.square(centres).sum(1)
    return np.asarray(np.maximum(squared, 0.0))
