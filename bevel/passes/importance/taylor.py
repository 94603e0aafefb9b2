"""Score by what the model's answers lose to second order."""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.slopes import batches, products, signed

# A score is a mean of squares of nearly normal numbers: of 64 of them it is right to sqrt(2 / 64) = 18%.
DRAWS = 64


@importance(aggregate="sum")
def taylor(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by half the mean square of the sum of its weights times their gradients.

    The gradients are random ones whose second moment is the Fisher information of the model's own answers, so that no
    labels are needed: then the score estimates how far the answers move without the entry (the Kullback-Leibler
    divergence, or for outputs that are no classes half the relative squared error), to second order. Needs PyTorch.

    Source: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning; Liu et al. 2021, Group Fisher
    Pruning.
    """
    model = analysis.model
    feeds = islice(cycle(batches(model, context, rows=max(context.samples // DRAWS, 1))), DRAWS)
    totals: dict[str, np.ndarray] = {}
    for done, gradients in enumerate(context.runtime.gradients(model, feeds, "fisher", context.seed)):
        context.progress("differentiating", done, DRAWS)
        for name, parts in products(analysis, groups, context, gradients, signed).items():
            totals[name] = totals.get(name, 0.0) + np.square(parts) / (2 * DRAWS)
    context.progress("differentiating", DRAWS, DRAWS)
    return totals
