"""Score by how much of what flows through a network passes each weight."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.slopes import absolute, products, slope


@importance(aggregate="sum")
def synflow(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the synaptic flow through its weights: their sizes times the gradients of the outputs' sum.

    For that all weights are made positive, all inputs of floats one, and normalisations multiply by their gains only;
    inputs of other types, such as tokens, are those of one batch. No data of anybody's is needed. Where a
    normalisation is written out in small operators, it stays, and scores say less. Needs PyTorch.

    Source: Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving synaptic flow.
    """
    return products(analysis, groups, context, slope(analysis, context, "flow", most=1), absolute)
