"""Score by the size of the weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.weights import energies, reduced


@importance(aggregate="norm")
def magnitude(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the L2 norm of all matrix and kernel weights that it owns, over every coupled tensor.

    Vectors (biases, normalisation parameters) count only where a group has nothing else. Weights are read one at a
    time. Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, lifted to coupled groups.
    """
    return {name: np.sqrt(parts) for name, parts in energies(analysis, groups, context).items()}


@importance(aggregate="sum")
def magnitude_l1(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the L1 norm of the weights that it owns; see `magnitude`."""
    return reduced(analysis, groups, context, lambda array: np.abs(array).sum((0, 2)))
