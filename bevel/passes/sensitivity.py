"""How much a network makes of a rounding: what its answers do when its inputs and weights move by one unit.

A sum taken in another order moves by some units in the last place. Most networks hand that on as it is. Some multiply
it a thousandfold, or a billionfold (deep residual networks whose activations grow, quotients of small numbers, random
weights): then no two ways to compute them agree, and an error at the outputs says nothing of what a pass did.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bevel.backends.coded import Decoded
from bevel.backends.onnxruntime import Level, Session
from bevel.passes.deviation import deviate
from bevel.passes.verify import Observation, observe

MOVED: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
LONG: Final = 32
"""A vector with so many entries has one for each channel; a model of integers has no matrix of floats to move."""
Array = np.ndarray[Any, Any]


def sensitivity(model: ir.Model, feeds: Iterable[Mapping[str, Any]], answers: Observation) -> Mapping[str, float]:
    """Return by output how far a model's answers move when its inputs and weights move by one unit in the last place.

    The error is relative to the output's largest value; `answers` is what the model answered to `feeds`. Raises
    `UnsupportedModel` where it does not run any more.
    """
    with Session(nudged(model), level=Level.AS_WRITTEN) as session:
        moved = observe(
            Decoded(session, model), [{name: nudge(value, 0) for name, value in feed.items()} for feed in feeds]
        )
    return {
        name: deviate(name, [seen[name] for seen in answers.answers], [seen[name] for seen in moved.answers]).relative
        for name in (answers.answers[0] if answers.answers else ())
    }


def nudged(model: ir.Model) -> ir.Model:
    """Return a copy whose matrices, kernels and long vectors are moved by one unit in the last place, up or down.

    Short vectors stay: among them are sizes, bounds and steps, of which no unit is to be lost.
    """
    copy = model.clone()
    values = (value for graph in copy.graphs() for value in graph.initializers.values())
    for number, value in enumerate(values):
        source = value.const_value
        if source is not None and source.dtype in MOVED and (len(source.shape) > 1 or source.size >= LONG):
            move = partial(_nudged, source, number)
            shape = ir.Shape(source.shape.numpy())
            value.const_value = ir.LazyTensor(move, dtype=source.dtype, shape=shape, name=value.name)
    return copy


def _nudged(source: ir.TensorProtocol, seed: int) -> ir.TensorProtocol:
    return ir.Tensor(nudge(source.numpy(), seed), dtype=source.dtype)


def nudge(value: Any, seed: int) -> Any:
    """Move numbers of an array by one unit in the last place, up or down at random; zeros and all else stay.

    >>> float(nudge(np.array([1.0], np.float32), 0)[0] - 1) in (2**-23, -(2**-24))
    True
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fV" or not value.dtype.itemsize > 1:
        return value
    up = np.random.default_rng(seed).integers(0, 2, value.shape, dtype=np.int8) > 0
    finfo: Any = ml_dtypes.finfo
    bounds = finfo(value.dtype)
    ends = np.where(up, bounds.max, bounds.min).astype(value.dtype)
    moved: Array = np.nextafter(value, ends)
    return np.where((value == 0) | ~np.isfinite(value.astype(np.float32)), value, moved)
