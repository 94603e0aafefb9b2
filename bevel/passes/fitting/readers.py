"""Which layers sum over the entries of groups, and which of their inputs each entry owns."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from bevel.ir.axes import atoms, places
from bevel.ir.groups import Analysis, Group
from bevel.passes.fitting.layers import Layer, layers

Array = np.ndarray[Any, Any]
Reads: TypeAlias = list[tuple[Group, Array]]


def readers(analysis: Analysis, groups: Sequence[Group]) -> dict[Layer, Reads]:
    """Return, by layer, the groups that it sums over, each with the inputs of its entries, `[size, inputs]`.

    Inputs are counted within one of the layer's matrices; they are the same ones in each.
    """
    by_dim = {group.dim: group for group in groups}
    found: dict[Layer, Reads] = {}
    for layer in layers(analysis.model):
        axes = analysis.axes(layer.weight)
        axis = None if axes is None else axes[layer.in_axis]
        for dim in () if axis is None else dict.fromkeys(atoms(axis)):
            if dim in by_dim:
                assert axis is not None
                inputs = _inputs(np.stack(places(axis, dim)), dim.size, layer.taps)
                found.setdefault(layer, []).append((by_dim[dim], inputs))
    return found


def _inputs(owners: Array, size: int, taps: int) -> Array:
    """Return the inputs of each entry, from which entry each channel is of, -1 for none.

    >>> _inputs(np.array([[0, 1, 0, 1, -1]]), 2, 1).tolist()
    [[0, 2], [1, 3]]
    """
    place, channel = np.nonzero(owners >= 0)
    order = np.argsort(owners[place, channel], kind="stable")
    channels = channel[order].reshape(size, -1)
    return (channels[:, :, None] * taps + np.arange(taps)).reshape(size, -1)
