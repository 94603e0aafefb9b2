"""Normalizations by fixed statistics, and what those statistics are on given inputs."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.passes.fitting.walk import Walk

Array = np.ndarray[Any, Any]

NORMALIZATION = "BatchNormalization"
# Its inputs.
DATA, SCALE, SHIFT, MEAN, VARIANCE = range(5)


def is_normalization(node: ir.Node) -> bool:
    """Say whether a node normalizes by a mean and a variance that are parameters of the model."""
    if node.domain or node.op_type != NORMALIZATION:
        return False
    fixed = node.attributes.get_int("training_mode", 0) == 0 and node.attributes.get_int("spatial", 1) == 1
    return fixed and all(value is not None and value.const_value is not None for value in node.inputs[SCALE:])


def parameter(node: ir.Node, place: int) -> ir.Value:
    """Return an input of a normalization."""
    value = node.inputs[place]
    assert value is not None
    return value


def align(walk: Walk, node: ir.Node) -> tuple[Array, Array]:
    """Let a normalization go by the statistics of its own input from here on, and return them.

    Noise then comes out of it distributed as the training data did: with the mean and variance that its scale and shift
    give.
    """
    walk.reach(node)
    mean, variance = statistics(walk.values(parameter(node, DATA)))
    walk.override(parameter(node, MEAN), mean)
    walk.override(parameter(node, VARIANCE), variance)
    return mean, variance


def statistics(arrays: Iterable[Array]) -> tuple[Array, Array]:
    """Return the mean and the variance of each channel (axis 1) over all arrays."""
    count, total, square = 0, np.zeros(()), np.zeros(())
    for array in arrays:
        others = tuple(axis for axis in range(array.ndim) if axis != 1)
        wide = array.astype(np.float64)
        count += array.size // array.shape[1]
        total = total + wide.sum(others)
        square = square + np.square(wide).sum(others)
    mean = total / max(count, 1)
    return mean, np.maximum(square / max(count, 1) - mean**2, 0.0)
