"""Write zeros into the weights of layers, count them, and say what they gain: room in compressed files, and no time."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan, sqrt
from statistics import median
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import PromiseBroken
from bevel.ir.content import content
from bevel.ir.cost import cost
from bevel.passes.base import Context
from bevel.passes.fitting.layers import Layer, rounded
from bevel.passes.fitting.moments import Moments, moments
from bevel.passes.fitting.second_order import SecondOrder

Array = np.ndarray[Any, Any]

# How hard to compress when the gain is measured, and how much of one weight at most.
LEVEL: Final = 1
SAMPLE: Final = 1 << 22


@dataclass(frozen=True)
class Zeroed:
    """One weight after its zeros were written: `before` and `after` are its bytes when deflated.

    `places` is how many bits say where the zeros are: one a weight, or one a tile.

    `error` is the squared error of the layer's output as a share of its square, NaN where it was not looked at.
    """

    name: str
    size: int
    zeros: int
    width: int
    before: float
    after: float
    places: int
    error: float = nan


@dataclass
class Ledger:
    """What was written so far."""

    entries: list[Zeroed] = field(default_factory=list)

    def note(
        self, layer: Layer, source: ir.TensorProtocol, wanted: int, error: float = nan, places: int | None = None
    ) -> None:
        """Read what is in place of a weight now, and check that it has as many zeros as it should.

        Raises `PromiseBroken` if not.
        """
        name, tensor = layer.weight.name or "", layer.weight.const_value
        assert tensor is not None
        with content(source) as old, content(tensor) as new:
            zeros = new.size - int(np.count_nonzero(new))
            sizes, bits = (deflated(old), deflated(new)), new.size if places is None else places
            entry = Zeroed(name, new.size, zeros, tensor.dtype.bitwidth, *sizes, bits, error)
        if zeros < wanted:
            raise PromiseBroken(f"{zeros} zeros, not {wanted}", where=f"initializer {name!r}")
        self.entries.append(entry)

    def notes(self, model: ir.Model) -> Iterator[str]:
        """Say how many zeros there are, what they gain and do not gain, and what they did to the layers."""
        size, zeros = sum(each.size for each in self.entries), sum(each.zeros for each in self.entries)
        if not size:
            yield "no layer was found to put zeros in"
            return
        share = zeros / max(cost(model).parameters, 1)
        yield f"{zeros / size:.2%} of the weights of {len(self.entries)} layers are zero, {share:.1%} of all parameters"
        yield "no time is gained: ONNX Runtime multiplies by zeros as by other numbers; the plain file keeps its size"
        yield f"room gained where files are compressed: {self._room()}"
        if len({round(each.zeros / each.size, 2) for each in self.entries}) > 1:
            yield self._spread()
        if errors := [(sqrt(each.error), each.name) for each in self.entries if each.error >= 0]:
            worst, name = max(errors)
            middle = median(error for error, _ in errors)
            yield f"error of a layer's own output, relative: {middle:.2g} median, {worst:.2g} worst ({name})"

    def _spread(self) -> str:
        shares = sorted((each.zeros / each.size, each.name) for each in self.entries)
        (low, first), (high, last) = shares[0], shares[-1]
        return f"zeros of a layer from {low:.0%} ({first}) to {high:.0%} ({last})"

    def _room(self) -> str:
        before, after = sum(each.before for each in self.entries), sum(each.after for each in self.entries)
        packed = sum(each.places + (each.size - each.zeros) * each.width for each in self.entries) / 8
        sizes = (f"{size / 1e6:.3g} MB" for size in (before, after, packed))
        return "these weights deflate to {} before, {} now; {} as a bitmap and values".format(*sizes)


def deflated(array: Array) -> float:
    """Return how many bytes an array takes when it is deflated, judged by its first megabytes if it is long."""
    flat = np.ascontiguousarray(array).reshape(-1)
    part = flat[: max(SAMPLE // flat.itemsize, 1)]
    return len(zlib.compress(part.tobytes(), LEVEL)) * (flat.size / part.size) if part.size else 0.0


def walk(
    model: ir.Model, found: Sequence[Layer], context: Context, *, looks: bool
) -> Iterator[tuple[Layer, Moments | None]]:
    """Yield the layers, each with the moments of its inputs as they are by then, if `looks`."""
    if looks:
        yield from moments(model, found, context)
    else:
        yield from ((layer, None) for layer in found)


def orders(moment: Moments | None) -> list[SecondOrder]:
    """Return the damped second moment of each group; nothing where inputs were not looked at."""
    return [] if moment is None else moment.orders(mean=False)


def put_lazily(layer: Layer, compute: Callable[[Array], Array]) -> None:
    """Give a layer weights that are computed from the ones it has when they are read."""
    tensor, name = layer.tensor, layer.weight.name

    def read() -> ir.TensorProtocol:
        array = rounded(tensor, layer.array(compute(layer.content(tensor))))
        return ir.Tensor(array, dtype=tensor.dtype, name=name)

    layer.weight.const_value = ir.LazyTensor(read, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def output_error(original: Array, weights: Array, second: Array) -> float:
    """Return the squared error of a layer's output as a share of its square: tr(D H D^T) / tr(W H W^T)."""
    change = weights - original
    energy = float(np.sum((original @ second) * original))
    return float(np.sum((change @ second) * change)) / energy if energy > 0 else 0.0
