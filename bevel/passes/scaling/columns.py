"""The largest weight that each input channel of a layer meets."""

from typing import Any

import numpy as np

from bevel.ir.content import content
from bevel.passes.fitting.layers import Layer

Array = np.ndarray[Any, Any]


def columns(layer: Layer) -> Array:
    """Return the largest magnitude among the weights of each input channel, in the order of the layer's input."""
    with content(layer.tensor) as array:
        matrices = np.abs(layer.matrices(array).astype(np.float64))
    return np.asarray(matrices.max(1).reshape(-1, layer.taps).max(1))
