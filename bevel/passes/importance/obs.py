"""Score by what dropping an entry costs the layers that read it, once they have made up for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bevel.ir.axes import atoms, places
from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.layers import Layer, layers
from bevel.passes.moments import Moments, moments
from bevel.passes.second_order import SecondOrder
from bevel.passes.shift import can_shift

Array = np.ndarray[Any, Any]
Users = list[tuple[Group, Array]]


@importance(aggregate="sum")
def obs(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the exact error that the layers which read it are left with after a least-squares refit.

    The error is relative to the energy of each layer's output, and added over the layers that read the entry; one that
    reads numbers which overflow says nothing. Where a layer can add a constant, what is dropped is replaced by its
    mean, so that only its variance counts. A group that no layer reads by itself (the channels that queries and keys
    are compared over) is left out. Source: Hassibi and Stork 1992, Optimal Brain Surgeon, lifted to coupled groups
    (`bevel.passes.second_order`).
    """
    readers = _readers(analysis, groups)
    found: dict[str, list[Array]] = {}
    orders: dict[int, list[SecondOrder]] = {}
    for layer, moment in moments(analysis.model, list(readers), context):
        if not np.isfinite(moment.second).all():
            continue
        shifted = can_shift(layer)
        key = id(moment) + shifted
        if key not in orders:  # layers that read one value share its moments
            orders = {key: [SecondOrder(second) for second in about(moment, shifted)]}
        errors = _errors(layer, orders[key], readers[layer])
        for (group, _), error in zip(readers[layer], errors, strict=True):
            found.setdefault(group.name, []).append(error)
    return {name: np.stack(parts) for name, parts in found.items()}


def about(moment: Moments, centred: bool) -> Array:
    """Return the second moment, about the mean where the layer can shift its output."""
    if not centred:
        return moment.second
    spread: Array = moment.second - moment.mean[:, :, None] * moment.mean[:, None, :]
    return spread


def _readers(analysis: Analysis, groups: Sequence[Group]) -> dict[Layer, Users]:
    """Return, by layer, the groups it sums over, and which inputs of one of its matrices each entry owns."""
    by_dim = {group.dim: group for group in groups}
    readers: dict[Layer, Users] = {}
    for layer in layers(analysis.model):
        axes = analysis.axes(layer.weight)
        if axes is None:
            continue
        axis = axes[layer.in_axis]
        for dim in dict.fromkeys(atoms(axis)):
            if dim in by_dim:
                units = _units(np.stack(places(axis, dim)), dim.size, layer.taps)
                readers.setdefault(layer, []).append((by_dim[dim], units))
    return readers


def _units(owners: Array, size: int, taps: int) -> Array:
    """Return the inputs of each entry, `[size, inputs]`, from which entry each channel is of, -1 for none.

    >>> _units(np.array([[0, 1, 0, 1, -1]]), 2, 1).tolist()
    [[0, 2], [1, 3]]
    """
    place, channel = np.nonzero(owners >= 0)
    order = np.argsort(owners[place, channel], kind="stable")
    channels = channel[order].reshape(size, -1)
    return (channels[:, :, None] * taps + np.arange(taps)).reshape(size, -1)


def _errors(layer: Layer, orders: Sequence[SecondOrder], users: Users) -> list[Array]:
    """Return the relative error of dropping each entry of each group alone."""
    tensor = layer.weight.const_value
    assert tensor is not None
    matrices = layer.matrices(tensor.numpy().astype(np.float64))
    energy = sum(float(np.vdot(w @ order.damped, w)) for w, order in zip(matrices, orders, strict=True))
    scale = max(energy, np.finfo(np.float64).tiny)
    pairs = list(zip(matrices, orders, strict=True))
    return [np.sum([order.scores(w, units) for w, order in pairs], axis=0) / scale for _, units in users]
