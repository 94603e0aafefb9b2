"""Score by what dropping an entry costs the layers that read it, once they have made up for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import moments
from bevel.passes.fitting.readers import Reads, readers
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.fitting.shift import can_shift
from bevel.passes.importance import importance

Array = np.ndarray[Any, Any]


@importance(aggregate="sum")
def obs(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the exact error that the layers which read it are left with after a least-squares refit.

    The error is relative to the energy of each layer's output, and added over the layers that read the entry; one that
    reads numbers which overflow says nothing. Where a layer can add a constant, what is dropped is replaced by its
    mean, so that only its variance counts. The refit is taken for granted: without one, wanda and flap do better. A
    group that no layer reads by itself (the channels that queries and keys are compared over) is left out. Source:
    Hassibi and Stork 1992, Optimal Brain Surgeon, lifted to coupled groups (`bevel.passes.fitting.second_order`).
    """
    reads = readers(analysis, groups)
    found: dict[str, list[Array]] = {}
    orders: dict[tuple[int, bool], list[SecondOrder]] = {}
    for layer, moment in moments(analysis.model, list(reads), context):
        if not moment.finite:
            continue
        key = id(moment), can_shift(layer)
        if key not in orders:  # layers that read one value share its moments
            orders = {key: [SecondOrder(second) for second in moment.about(key[1])]}
        for (group, _), error in zip(reads[layer], _errors(layer, orders[key], reads[layer]), strict=True):
            found.setdefault(group.name, []).append(error)
    return {name: np.stack(parts) for name, parts in found.items()}


def _errors(layer: Layer, orders: Sequence[SecondOrder], reads: Reads) -> list[Array]:
    """Return the relative error of dropping each entry of each group alone."""
    matrices = layer.content()
    pairs = list(zip(matrices, orders, strict=True))
    energy = sum(float(np.vdot(w @ order.damped, w)) for w, order in pairs)
    scale = max(energy, np.finfo(np.float64).tiny)
    return [np.sum([order.scores(w, inputs) for w, order in pairs], axis=0) / scale for _, inputs in reads]
