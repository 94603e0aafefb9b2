"""How the entries of groups vary together where layers read them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.fitting.moments import moments
from bevel.passes.fitting.readers import readers

Array = np.ndarray[Any, Any]


def covariances(analysis: Analysis, groups: Sequence[Group], context: Context) -> dict[Group, Array]:
    """Return the second moments `[size, size]` of each group's entries, over all layers that read them.

    Each layer counts the same, however large the numbers are that it reads. Groups that no layer reads are left out.
    """
    read = readers(analysis, groups)
    found: dict[Group, Array] = {}
    for layer, moment in moments(analysis.model, list(read), context):
        second = moment.second.mean(axis=0)
        for group, inputs in read[layer]:
            own = sum(second[np.ix_(column, column)] for column in inputs.T)
            found[group] = found.get(group, 0) + own / max(np.trace(own), np.finfo(float).tiny)
    return found


def principal(covariance: Array, *, mean_first: bool = False) -> Array:
    """Return the eigenvectors of a covariance as rows, the largest variance first; or the mean, then those beside it.

    >>> principal(np.diag([1.0, 4.0])).round(6).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    >>> np.abs(principal(np.diag([1.0, 4.0]), mean_first=True) * 2**0.5).round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    if mean_first:
        ones = np.full(len(covariance), len(covariance) ** -0.5)
        beside = np.eye(len(ones)) - np.outer(ones, ones)
        covariance = beside @ covariance @ beside + np.outer(ones, ones) * (2 * np.trace(covariance))
    vectors = np.linalg.eigh(covariance)[1][:, ::-1].T
    return np.asarray(vectors * np.sign(vectors.sum(axis=1, keepdims=True) + np.finfo(float).tiny))
