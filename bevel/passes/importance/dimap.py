"""Score by the share of a whole module's energy among all that is at least as large."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.lamp import shares
from bevel.passes.importance.weights import energies


@importance(normalize="none")
def dimap(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by its energy in all coupled tensors over that of all entries with as much or more.

    `lamp` takes every tensor by itself. Here the coupled tensors are one module: the projections of an attention, the
    layers of an MLP. Source: He and Zhou 2024, Data-independent Module-aware Pruning for Hierarchical Vision
    Transformers, on channels instead of weights.
    """
    found = energies(analysis, groups, context)
    return {name: shares(parts.sum(0)) for name, parts in found.items()}
