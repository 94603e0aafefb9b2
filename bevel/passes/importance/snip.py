"""Score by how sensitive the loss is to each weight."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.slopes import absolute, products, slope


@importance(aggregate="sum")
def snip(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the sum of the sizes of its weights times their gradients.

    The gradient is the mean over all inputs of that of the loss against the model's own answer, for want of labels: the
    likeliest class, or for outputs that are no classes half their squared norm. Needs PyTorch.

    Source: Lee et al. 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity.
    """
    return products(analysis, groups, context, slope(analysis, context, "predicted"), absolute)
