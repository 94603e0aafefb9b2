"""Move outliers from activations into weights."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir

from bevel.ir.groups import analyse
from bevel.passes.base import SAMPLES, Context, Doc, Outcome, Pass, Preserving, Promise, Range
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.magnitudes import magnitudes
from bevel.passes.scaling.columns import columns
from bevel.passes.scaling.factors import powers_of_two, smoothing, taming
from bevel.passes.scaling.gates import open_gates
from bevel.passes.scaling.motions import Scaling, largest_of, left_alone, scalings, spread
from bevel.passes.scaling.products import even_out, meetings
from bevel.passes.scaling.shifts import centre

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Smooth(Pass):
    """Move outliers from activations into weights, where they are easier to quantize.

    What it does: divides each channel that layers read by `max|X|^alpha / max|W|^(1 - alpha)` and multiplies their
    weights by it; what gives the channel takes the division: the gain and bias of a norm, the layer before it. All
    layers that read a channel share its scale: queries, keys and values have one. Besides norms it goes from values to
    the output of attention, head by head, from the linear half of a gated unit to what reads the product, and through
    ReLU and everything else that a scale passes. Where none passes, the notes name the node. No node is added, except
    with `gates`: then scales pass SiLU, GELU and whatever else multiplies something by a function of itself, by one
    product more before that function (MambaQuant's SSwish). With `products` both sides of a product of activations get
    the same ranges: queries and keys, or what is written to the states of a state space model and what is read of them.
    With `shifts` the middle of what layers read moves into their biases first, where all of them have one; where
    nothing gives a vector to subtract it from, by an addition, if that takes off a quarter of the range.

    With `outliers` only channels that stand out are scaled, found coarse to fine: of those far above the quartiles, the
    ones behind the widest gap (CBQ). They are divided by `(max|X| / the largest of the others)^alpha`, whatever the
    weights are.

    Promise: Preserving; with `exact=true` scales are powers of two, which round nothing.

    Example: smooth{alpha=0.7}

    Source: Xiao et al. 2023, SmoothQuant; Wei et al. 2023, Outlier Suppression+ (shifts); Ding et al. 2024, CBQ
    (outliers); Xu et al. 2025, MambaQuant (gates, products, shifts).
    """

    name: ClassVar[str] = "smooth"
    promise: ClassVar[Promise] = Preserving()

    alpha: Annotated[float, Range(0, 1), Doc("how much of the range moves into weights: 1 is all of it")] = 0.5
    exact: Annotated[bool, Doc("take the nearest powers of two")] = False
    gates: Annotated[bool, Doc("let scales pass x * f(x), by one product more that scales back what f reads")] = False
    products: Annotated[bool, Doc("even out both sides of products of activations, such as queries and keys")] = False
    shifts: Annotated[bool, Doc("centre what layers read, by means of their biases")] = False
    outliers: Annotated[bool, Doc("scale channels alone that stand out from the others")] = False
    samples: Annotated[int, Range(1), Doc("how many samples to take ranges over")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to scale; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Measure, then scale one motion after the other."""
        context = replace(context, samples=self.samples)
        centred = self._centred(model, context) if self.shifts else []
        analysis = analyse(model)
        gates = open_gates(analysis) if self.gates else []
        analysis = analyse(model) if gates else analysis
        found = scalings(analysis, self.only, self.skip)
        moved = {place.value for each in found for place in each.direction.motion.initializers}
        for gate in gates:
            if gate.ones not in moved:
                gate.remove()
        read = {reading.layer: reading for each in found for reading in each.readings}
        measured = magnitudes(model, list(read), context)
        before = {data: each.largest for data, each in measured.items()}
        ranges = dict(before)
        for each in found:
            scale = self._scale(each, ranges)
            each.divide(analysis, scale)
            for data, owned in {reading.layer.data: reading.owners for reading in each.readings}.items():
                ranges[data] = ranges[data] / spread(scale, owned)
        opened = sum(gate.ones in moved for gate in gates)
        said = [f"{opened} of {len(gates)} gates opened, by one product more each"] if self.gates else []
        said += [*(self._evened(model, context) if self.products else []), *centred]
        return Outcome(notes=(*_gained(list(read), before, ranges), *said, *left_alone(analysis, list(read))))

    def _centred(self, model: ir.Model, context: Context) -> list[str]:
        """Centre what layers read, and say how much of the ranges was left."""
        done = centre(model, context, self.only, self.skip)
        share = f", {np.mean([each.left for each in done]):.0%} of the largest magnitude is left (mean)" if done else ""
        return [f"{len(done)} inputs of layers centred, {sum(each.addition for each in done)} by an addition{share}"]

    def _evened(self, model: ir.Model, context: Context) -> list[str]:
        """Even out products, and say how far an entry of either side stood out before, and stands out now."""
        analysis = analyse(model)  # without the gates that nothing opened
        found = meetings(analysis, self.only, self.skip)
        outliers = list(even_out(analysis, found, context, exact=self.exact))
        worst = max(outliers, default=None)
        more = f", the largest entry over the median one: {worst[0]:.3g} before, {worst[1]:.3g} now" if worst else ""
        return [f"{len(found)} products of activations evened out{more}"]

    def _scale(self, each: Scaling, ranges: dict[ir.Value, Array]) -> Array:
        """Return by what to divide the inputs that a motion scales."""
        inputs, weights = (
            np.max([largest_of(values, reading.owners, each.size) for reading, values in sides], axis=0)
            for sides in (
                [(reading, ranges[reading.layer.data]) for reading in each.readings],
                [(reading, columns(reading.layer)) for reading in each.readings],
            )
        )
        scale = taming(inputs, self.alpha) if self.outliers else smoothing(inputs, weights, self.alpha)
        return powers_of_two(scale, abs(each.power)) if self.exact else scale


def _gained(read: list[Layer], before: dict[ir.Value, Array], after: dict[ir.Value, Array]) -> list[str]:
    """Say how far the largest channel stood out before, and stands out now, where it did so most."""
    if not read:
        return ["no layer reads what a scale can move"]
    worst = max(read, key=lambda layer: _outlier(before[layer.data]))
    first, last = (_outlier(each[worst.data]) for each in (before, after))
    middle = [float(np.median([_outlier(each[layer.data]) for layer in read])) for each in (before, after)]
    return [
        f"largest input channel over the median one: {middle[0]:.3g} before, {middle[1]:.3g} now (median layer); "
        f"{first:.3g} before, {last:.3g} now ({worst.weight.name})"
    ]


def _outlier(ranges: Array) -> float:
    middle = float(np.median(ranges))
    return float(ranges.max()) / middle if middle > 0 else 1.0
