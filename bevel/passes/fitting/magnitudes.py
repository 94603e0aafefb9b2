"""How large the channels are that layers read: the largest and the mean magnitude of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.passes.base import Context
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import visits

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Magnitudes:
    """The largest and the mean magnitude `[channels]` of what a layer reads."""

    largest: Array
    mean: Array


def magnitudes(model: ir.Model, wanted: Sequence[Layer], context: Context) -> dict[ir.Value, Magnitudes]:
    """Return the magnitudes of what layers read over the context's samples, gathered in one walk through the model."""
    found: dict[ir.Value, Magnitudes] = {}
    for layer, walk in visits(model, wanted, context):
        if layer.data not in found:
            found[layer.data] = measured(walk.values(layer.data), layer.channel_axis)
    return found


def measured(arrays: Iterable[Array], axis: int) -> Magnitudes:
    """Return the magnitudes of the channels along an axis.

    >>> found = measured([np.array([[1.0, -4.0]]), np.array([[3.0, 0.0], [-2.0, 2.0]])], -1)
    >>> found.largest.tolist(), found.mean.tolist()
    ([3.0, 4.0], [2.0, 2.0])
    """
    largest, total, count = np.zeros(()), np.zeros(()), 0
    for array in arrays:
        magnitude = np.abs(array)
        others = tuple(place for place in range(array.ndim) if place != axis % array.ndim)
        largest = np.maximum(largest, magnitude.max(others, initial=0.0))
        total = total + magnitude.sum(others, dtype=np.float64)
        count += array.size // max(array.shape[axis], 1)
    return Magnitudes(np.asarray(largest, np.float64), total / max(count, 1))
