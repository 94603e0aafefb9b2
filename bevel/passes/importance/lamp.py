"""Score by the share of a weight's energy among all that is at least as large."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.weights import energies


@importance(aggregate="mean", normalize="none")
def lamp(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry, in each tensor by itself, by its energy over that of all entries with as much or more.

    The largest of a tensor scores 1, so tensors of any scale can be compared, and one threshold empties no layer.
    Source: Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, on channels instead of weights.
    """
    found = energies(analysis, groups, context)
    return {name: np.reshape([shares(part) for part in parts], parts.shape) for name, parts in found.items()}


def shares(energy: np.ndarray) -> np.ndarray:
    """Divide each energy by the sum of those that are not smaller; equal ones score equally.

    >>> shares(np.array([1.0, 3.0, 4.0]))
    array([0.125     , 0.42857143, 1.        ])
    """
    ascending = np.sort(energy)
    not_smaller = np.cumsum(ascending[::-1])[::-1][np.searchsorted(ascending, energy)]
    found: np.ndarray = np.divide(energy, not_smaller, out=np.zeros_like(energy), where=not_smaller > 0)
    return found
