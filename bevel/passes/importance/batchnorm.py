"""Score by the scales of batch normalisation."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.content import content
from bevel.ir.groups import Analysis, Group, Member
from bevel.passes.base import Context
from bevel.passes.fitting.normalization import NORMALIZATION, SCALE
from bevel.passes.importance import importance
from bevel.passes.importance.weights import is_float, lifted


@importance(aggregate="mean")
def batchnorm(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by `|gamma|` of the BatchNormalization that it passes through; the mean, if through several.

    A group that passes through none is left out. Source: Liu et al. 2017, Learning Efficient Convolutional Networks
    through Network Slimming.
    """
    found: dict[str, np.ndarray] = {}
    for group in groups:
        scales = dict.fromkeys(member.value for member in group.members if _scales(member))
        parts = []
        for value in scales:
            axes = analysis.axes(value)
            assert axes is not None and value.const_value is not None
            with content(value.const_value) as array:
                sizes = np.abs(array.astype(np.float64))
            parts.append(lifted(sizes, axes[0], group.dim))
        if parts:
            found[group.name] = np.stack(parts)
    return found


def _scales(member: Member) -> bool:
    """Say whether a group's member is what some batch normalisation multiplies channels with."""
    uses = member.value.uses()
    return is_float(member.value) and any(node.op_type == NORMALIZATION and at == SCALE for node, at in uses)
