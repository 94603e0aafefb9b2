"""Which widths a group may have."""

from math import gcd, prod
from statistics import mode

import numpy as np

from bevel.ir.axes import Product, Sum, resolve
from bevel.ir.groups import Analysis, Group, Member

KERNELS = frozenset({"Conv", "ConvTranspose", "FusedConv"})
"""Operators whose time goes in steps of a block of channels; that of matrix products follows every width."""


def ladder(size: int, step: int, least: int) -> np.ndarray:
    """Return the multiples of a step from the least width on, and all that there is.

    >>> ladder(20, 8, 1).tolist(), ladder(20, 8, 9).tolist(), ladder(4, 8, 1).tolist()
    ([8, 16, 20], [16, 20], [4])
    """
    first = -(-max(least, 1) // step) * step
    return np.array([*range(first, size, step), size])


def step_of(analysis: Analysis, group: Group, channels: int) -> int:
    """Return how many entries make a multiple of so many channels; a head is as many channels as it is wide."""
    return channels // gcd(channels, span(analysis, group))


def span(analysis: Analysis, group: Group) -> int:
    """Return how many neighbouring channels most of a group's tensors have for one of its entries."""
    return mode(_channels(analysis, member) for member in group.members)


def _channels(analysis: Analysis, member: Member) -> int:
    axes = analysis.axes(member.value)
    assert axes is not None
    axis, channels = resolve(axes[member.axis]), 1
    for place in member.path:
        if isinstance(axis, Product):
            channels *= prod(factor.size for factor in axis.factors[place + 1 :])
            axis = axis.factors[place]
        elif isinstance(axis, Sum):
            axis = axis.terms[place]
    return channels


def natural_step(analysis: Analysis, group: Group, block: int) -> int:
    """Return the step below which fewer entries save no time: a block of channels where a convolution has them.

    Measured (`benchmarks/kernel_widths.py`): a convolution with 52 channels takes as long as one with 64, one with 8 as
    long as one with 16; of matrix products every column counts.
    """
    return step_of(analysis, group, block) if _in_kernels(group) else 1


def _in_kernels(group: Group) -> bool:
    return any(node.op_type in KERNELS for member in group.members for node, _ in member.value.uses())
