"""Score by the distance to the other filters."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.weights import read

ROWS = 1024  # distances are taken so many at a time, so that they never fill the memory


@importance(aggregate="sum")
def fpgm(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the sum of the distances from its weights to those of all others, in each coupled tensor.

    The entry nearest to the geometric median is the one that the others can best stand in for. Source: He et al. 2019,
    Filter Pruning via Geometric Median, lifted to coupled groups.
    """
    parts: dict[str, list[np.ndarray]] = {group.name: [] for group in groups}
    for weight in read(analysis, groups, context):
        for group in weight.owners:
            parts[group.name].append(distances(weight.filters(group)))
    return {group.name: np.reshape(parts[group.name], (-1, group.size)) for group in groups}


def distances(filters: np.ndarray) -> np.ndarray:
    """Sum the distances from each row to every other.

    >>> distances(np.array([[0.0], [1.0], [3.0]]))
    array([4., 3., 5.])
    """
    centred = filters - filters.mean(0)  # small next to the differences, so that their squares do not cancel
    squares = np.einsum("nk,nk->n", centred, centred)
    totals = []
    for start in range(0, len(centred), ROWS):
        some = slice(start, start + ROWS)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 ab
        apart = squares[some, None] + squares[None, :] - 2 * (centred[some] @ centred.T)
        np.fill_diagonal(apart[:, start:], 0)  # from itself; rounding would leave some
        totals.append(np.sqrt(np.maximum(apart, 0)).sum(1, dtype=np.float64))
    return np.concatenate(totals)
