"""Score by what the gradient's own size depends on."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.slopes import products, signed, slope


@importance(aggregate="sum")
def grasp(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by how much the squared norm of the gradient changes without it, up or down.

    To first order that is twice the sum of its weights times the Hessian-gradient product, of the loss that `snip`
    takes. The authors prune what raises the norm first, for networks that are yet to be trained; a trained one should
    keep its gradients as they are, so the sign does not count (Lubana and Dick 2021). Needs PyTorch.

    Source: Wang et al. 2020, Picking Winning Tickets Before Training by Preserving Gradient Flow.
    """
    found = products(analysis, groups, context, slope(analysis, context, "curvature"), signed)
    return {name: np.abs(parts) for name, parts in found.items()}
