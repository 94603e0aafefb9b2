"""First and second moments of what layers read, gathered in ONNX Runtime while the model is walked through once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.passes.base import Context, Runtime
from bevel.passes.layers import Layer
from bevel.passes.unfold import geometry, sums
from bevel.passes.walk import Walk

Array = np.ndarray[Any, Any]

SAMPLES = 128


@dataclass(frozen=True)
class Moments:
    """The mean `[groups, in]` and the mean outer product `[groups, in, in]` of `count` rows of a layer's input."""

    count: int
    mean: Array
    second: Array


def moments(
    model: ir.Model, wanted: Sequence[Layer], context: Context, samples: int = SAMPLES
) -> Iterator[tuple[Layer, Moments]]:
    """Yield each layer, in the order of the graph, with the moments of its input over about so many samples.

    The samples are the context's calibration, or made up. A caller that changes a layer's weight before it asks for the
    next makes the moments of later layers see the change.
    """
    order = {node: place for place, node in enumerate(model.graph)}
    walk = Walk(model, context.calibration.samples(samples), context.runtime)
    last: tuple[object, Moments] | None = None
    for done, layer in enumerate(sorted(wanted, key=lambda layer: order[layer.node])):
        context.progress("statistics", done, len(wanted))
        walk.reach(layer.node)
        key = (layer.data, geometry(layer))
        if last is None or last[0] != key:
            last = key, gather(layer, walk.values(layer.data), context.runtime)
        yield layer, last[1]
    context.progress("statistics", len(wanted), len(wanted))


def gather(layer: Layer, arrays: Iterable[Array], runtime: Runtime) -> Moments:
    """Return the moments of a layer's input."""
    count, total, second = 0, np.zeros(()), np.zeros(())
    with runtime.open(sums(layer)) as runs:
        for array in arrays:
            answer = runs.run({"x": array})
            count += int(answer["rows"][0])
            total = total + answer["total"].astype(np.float64)
            second = second + answer["second"].astype(np.float64)
    return Moments(count, total / max(count, 1), second / max(count, 1))
