"""First and second moments of what layers read, gathered in ONNX Runtime while the model is walked through once."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.passes.base import Context, Runtime
from bevel.passes.fitting.damping import apart, damping
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.normalization import align, is_normalization
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.fitting.triangular import mirror
from bevel.passes.fitting.unfold import geometry, sums
from bevel.passes.fitting.walk import Walk

Array = np.ndarray[Any, Any]

# Inputs whose products are summed at a time, and how many rows they are summed over at least.
STRIP: Final = 512
MANY: Final = 1024


@dataclass(frozen=True)
class Moments:
    """The mean `[groups, in]` and the mean outer product `[groups, in, in]` of `count` rows of a layer's input.

    `apart` is as how many rows they count that have nothing to do with each other.
    """

    count: int
    mean: Array
    second: Array
    apart: int
    _orders: dict[bool, list[SecondOrder]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""
        return bool(np.isfinite(self.second).all())

    def about(self, mean: bool) -> Array:
        """Return the second moments about the mean (covariances), or about zero."""
        if not mean:
            return self.second
        spread: Array = self.mean[:, :, None] * self.mean[:, None, :]
        return np.subtract(self.second, spread, out=spread)

    def orders(self, mean: bool) -> list[SecondOrder]:
        """Return what follows from the moments of each group about the mean, or about zero; kept for the next time."""
        if mean not in self._orders:
            self._orders[mean] = [
                SecondOrder(group, damping(group, self.apart), overwrite=mean)  # about the mean, they are new
                for group in self.about(mean)
            ]
        return self._orders[mean]


def moments(model: ir.Model, wanted: Sequence[Layer], context: Context) -> Iterator[tuple[Layer, Moments]]:
    """Yield each layer, in the order of the graph, with the moments of its input over the context's samples.

    On made-up samples, normalizations go by the statistics of these (`align` in `bevel.passes.fitting.normalization`).
    A caller that changes a layer's weight before it asks for the next makes the moments of later layers see the change.
    Moments can be larger than the layer: those in a row that read the same share theirs, and none stays in memory that
    the caller has let go.
    """
    waiting = Counter((layer.data, geometry(layer)) for layer in wanted)
    shared: dict[object, Moments] = {}
    for layer, walk in visits(model, wanted, context):
        key = (layer.data, geometry(layer))
        if key not in shared:
            shared.clear()
            shared[key] = gather(layer, walk.values(layer.data), context.runtime)
        waiting[key] -= 1
        yield layer, shared[key] if waiting[key] else shared.pop(key)


def visits(model: ir.Model, wanted: Sequence[Layer], context: Context) -> Iterator[tuple[Layer, Walk]]:
    """Yield each layer, in the order of the graph, with the walk that has reached it: what it reads is there."""
    by_node = {layer.node: layer for layer in wanted}
    for node, walk in reached(model, list(by_node), context):
        yield by_node[node], walk


def reached(model: ir.Model, wanted: Sequence[ir.Node], context: Context) -> Iterator[tuple[ir.Node, Walk]]:
    """Yield nodes, in the order of the graph, with the walk that has reached them: what they read is there."""
    nodes = set(wanted)
    walk = Walk(model, context.calibration.samples(context.samples), context.runtime)
    done = 0
    for node in model.graph:
        if context.calibration.made_up and done < len(nodes) and is_normalization(node):
            align(walk, node)
        if node not in nodes:
            continue
        context.progress("statistics", done, len(nodes))
        done += 1
        walk.reach(node)
        yield node, walk
    context.progress("statistics", len(nodes), len(nodes))


def gather(layer: Layer, arrays: Iterable[Array], runtime: Runtime) -> Moments:
    """Return the moments of a layer's input."""
    return _of_patches(layer, arrays, runtime) if layer.kernel else _of_rows(layer.sizes[layer.in_axis], arrays)


def _of_patches(layer: Layer, arrays: Iterable[Array], runtime: Runtime) -> Moments:
    """Return the moments of what is under the kernel of a convolution."""
    count, samples, total, second = 0, 0, np.zeros(()), np.zeros(())
    with runtime.open(sums(layer)) as runs:
        for array in arrays:
            samples += len(array)
            answer = runs.run({"x": array})
            count += int(answer["rows"][0])
            total = total + answer["total"].astype(np.float64)
            second = second + answer["second"].astype(np.float64)
    return Moments(count, total / max(count, 1), second / max(count, 1), apart(count, samples))


def _of_rows(width: int, arrays: Iterable[Array]) -> Moments:
    """Return the moments of the rows that a matrix reads, of which half the products say all."""
    count, samples, total, second = 0, 0, np.zeros(width), np.zeros((width, width))
    for rows, some in _together(width, arrays):
        count += len(rows)
        samples += some
        total += rows.sum(0)
        for start in range(0, width, STRIP):
            stop = start + STRIP
            second[start:stop, :stop] += rows[:, start:stop].T @ rows[:, :stop]
    second /= max(count, 1)
    mirror(second)
    return Moments(count, total[None] / max(count, 1), second[None], apart(count, samples))


def _together(width: int, arrays: Iterable[Array]) -> Iterator[tuple[Array, int]]:
    """Yield rows in single precision, so many at a time that their products take longer than to add these up.

    With them comes how many samples they are of.
    """
    waiting, samples = list[Array](), 0
    for array in arrays:
        waiting.append(array.reshape(-1, width).astype(np.float32, copy=False))
        samples += len(array) if array.ndim > 1 else 1
        if sum(map(len, waiting)) >= MANY:
            yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0], samples
            waiting, samples = [], 0
    if waiting:
        yield np.concatenate(waiting), samples
