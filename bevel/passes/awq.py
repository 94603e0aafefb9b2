"""Give the weights that meet large inputs finer steps of quantization."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import median
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.groups import analyse
from bevel.passes.base import SAMPLES, Context, Doc, Outcome, Pass, Preserving, Promise, Range
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.magnitudes import measured
from bevel.passes.fitting.moments import gather, visits
from bevel.passes.fitting.unfold import geometry
from bevel.passes.fitting.walk import Walk
from bevel.passes.formats import Format, block_format
from bevel.passes.scaling.motions import Reading, Scaling, left_alone, mean_of, scalings, spread
from bevel.passes.scaling.search import Part, best

Array = np.ndarray[Any, Any]

GRID: Final = 20
BLOCK: Final = 32
TINY: Final = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Awq(Pass):
    """Give the weights that meet large inputs finer steps of quantization (activation-aware scales).

    What it does: multiplies the weights of each input channel by `mean|X|^alpha`, normalised, and divides the channel
    by it where it is made: in the gain and bias of a norm, or the layer before. What is quantized in blocks afterwards
    spends more of its steps on the channels that are large. `alpha` is chosen for each scale from a grid that begins
    with none, by the error of the outputs of all layers that read it, with weights quantized to `format` in blocks of
    inputs. The same format and block are then given to what quantizes. No node is added, nothing is quantized here.

    Promise: Preserving; with `exact=true` scales are powers of two, which round nothing.

    Example: awq{format=int4 block=32}

    Source: Lin et al. 2024, AWQ: Activation-aware Weight Quantization (its scales; errors here by second moments).
    """

    name: ClassVar[str] = "awq"
    promise: ClassVar[Promise] = Preserving()

    format: Annotated[str, Doc("the format that weights will have: an installed one")] = "int4"
    block: Annotated[int, Range(0), Doc("how many inputs share a scale; 0 for all")] = BLOCK
    grid: Annotated[int, Range(2), Doc("how many exponents from 0 to 1 to try")] = GRID
    exact: Annotated[bool, Doc("take the nearest powers of two")] = False
    samples: Annotated[int, Range(1), Doc("how many samples to take statistics over")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to scale; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Search along one walk through the model, then scale."""
        analysis = analyse(model)
        found = scalings(analysis, self.only, self.skip)
        search = _Search(found, self, block_format(self.format))
        read = list(dict.fromkeys(reading.layer for each in found for reading in each.readings))
        for layer, walk in visits(model, read, replace(context, samples=self.samples)):
            search.visit(layer, walk, context)
        for each, scale in search.scales.items():
            each.divide(analysis, scale)
        return Outcome(notes=(*search.notes(), *left_alone(analysis, read)))


@dataclass(frozen=True, eq=False)
class _Read:
    """What a layer reads: the second moment of its rows, and the mean magnitude of its channels."""

    key: object
    second: Array
    mean: Array


@dataclass
class _Search:
    """The scales found so far, and the statistics that are still needed."""

    found: Sequence[Scaling]
    options: Awq
    format: Format
    scales: dict[Scaling, Array] = field(default_factory=dict)
    alphas: list[float] = field(default_factory=list)
    errors: dict[Layer, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._held: dict[Layer, _Read] = {}
        self._base: dict[Layer, Array] = {}

    def visit(self, layer: Layer, walk: Walk, context: Context) -> None:
        """Look at what a layer reads, and choose the scales for which that was the last one missing."""
        self._held[layer] = self._read(layer, walk, context)
        for each in self.found:
            wanted = [reading.layer for reading in each.readings]
            if each not in self.scales and all(other in self._held for other in wanted):
                self._choose(each)
        open_ones = {reading.layer for each in self.found if each not in self.scales for reading in each.readings}
        self._held = {other: read for other, read in self._held.items() if other in open_ones}

    def _read(self, layer: Layer, walk: Walk, context: Context) -> _Read:
        key = (layer.data, geometry(layer))
        for read in self._held.values():
            if read.key == key:
                return read
        second = gather(layer, walk.values(layer.data), context.runtime).second
        return _Read(key, second, measured(walk.values(layer.data), layer.channel_axis).mean)

    def _choose(self, each: Scaling) -> None:
        """Search for one exponent, unless the moments of some layer overflow."""
        size, parts = each.size, [self._part(reading) for reading in each.readings]
        if not all(np.isfinite(part.second).all() for part in parts):
            self.scales[each] = np.ones(size)
            return
        means = np.mean(
            [
                mean_of(self._held[reading.layer].mean / self._base[reading.layer], reading.owners, size)
                for reading in each.readings
            ],
            axis=0,
        )
        found = best(
            parts, means, self._quantized, self.options.grid, root=abs(each.power) if self.options.exact else 0
        )
        self.scales[each] = found.scale
        self.alphas.append(found.alpha)
        for reading, part, *errors in zip(each.readings, parts, found.before, found.after, strict=True):
            before, after = (sqrt(max(error, 0.0) / max(part.energy, TINY)) for error in errors)
            self.errors[reading.layer] = self.errors.get(reading.layer, (before, after))[0], after
            self._base[reading.layer] = self._base[reading.layer] * spread(found.scale, reading.owners)

    def _part(self, reading: Reading) -> Part:
        layer, weights = reading.layer, reading.layer.content().astype(np.float32)
        base = self._base.setdefault(layer, np.ones(len(reading.owners)))
        rows = len(weights), -1
        owners, scaled = (np.repeat(each, layer.taps).reshape(rows) for each in (reading.owners, base))
        return Part(weights, self._held[layer].second.astype(np.float32), owners, scaled)

    def _quantized(self, weights: Array) -> Array:
        return self.format.round_trip(weights, -1, self.options.block)

    def notes(self) -> list[str]:
        """Say which exponents were chosen, and what they gain."""
        if not self.errors:
            return ["no layer reads what a scale can move"]
        before, now = ([errors[place] for errors in self.errors.values()] for place in (0, 1))
        return [
            f"exponents from {min(self.alphas):.2f} to {max(self.alphas):.2f}, {median(self.alphas):.2f} in the median",
            f"relative error of a layer's output with {self.format.name} weights in blocks of {self.options.block}: "
            f"{median(before):.3g} without, {median(now):.3g} with these scales (median); "
            f"{max(before):.3g} and {max(now):.3g} (worst)",
        ]
