"""Compute convolutions and matrix products in 8 bits, with ranges that calibration inputs give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import onnx_ir as ir

from bevel.ir.opset import raise_opset
from bevel.passes.activations.choice import MOST_OWN_ERROR, limited, sound
from bevel.passes.activations.errors import Twin, linear_twins
from bevel.passes.activations.grids import Coded, Grid, spanning
from bevel.passes.activations.histogram import Method
from bevel.passes.activations.ledger import Ledger
from bevel.passes.activations.linear import Writer
from bevel.passes.activations.native import write_native
from bevel.passes.activations.ranges import ranges
from bevel.passes.activations.samples import Samples
from bevel.passes.activations.sites import Site, grids_wanted, sites, stored
from bevel.passes.activations.weights import weight_codes
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.fitting.layers import CONV, GEMM, MATMUL

OPERATORS: Final = (CONV, MATMUL, GEMM)


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Compute convolutions and matrix products in 8 bits, with ranges that calibration inputs give.

    What it does: puts QuantizeLinear and DequantizeLinear around Conv, MatMul and Gemm with constant weights, in the
    forms that ONNX Runtime computes in 8 bits on the CPU: unsigned activations with one scale and zero point, signed
    weights with a scale for each output, biases in 32 bits. Relu and Clip go into the range; Add, Concat and pooling
    between convolutions stay in 8 bits, and so does what only moves numbers; a channel shuffle becomes a Gather, which
    is fast there. Ranges are the extremes over the calibration inputs (`minmax`), hold `percentile` per cent of the
    values, or leave the least squared error (`mse`) or divergence (`entropy`).

    A layer stays in floats if its own output, computed in 8 bits alone, has a relative error above `max-layer-error` on
    inputs held back from calibration: a quarter of them. If the run has a limit for the error of the outputs
    (`--max-error`), as many of the layers that do most to them stay in floats as it takes; with `repair=false` they do
    not, and the run fails. `depthwise=false` leaves depthwise convolutions in floats: alone they are no faster in 8
    bits, but between layers in 8 bits they are several times slower in floats. A model of opset 9 to 12 becomes one of
    opset 13. `reduce-range` takes 7 bits for weights, for x86 processors without VNNI instructions, on which sums of
    products overflow otherwise.

    Promise: Lossy. The layers that stay in floats are named, with the reason.

    Example: quantize-static{calibration=percentile percentile=99.99 skip=head*}

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference; Nagel et al. 2021, A White Paper on Neural Network Quantization.
    """

    name: ClassVar[str] = "quantize-static"
    promise: ClassVar[Promise] = Lossy()

    calibration: Annotated[Method, Doc("how the range of an activation is chosen")] = "mse"
    percentile: Annotated[float, Range(50, 100), Doc("per cent of the values in the range, with percentile")] = 99.99
    max_layer_error: Annotated[float, Range(0), Doc("relative error of its own output that a layer may have")] = (
        MOST_OWN_ERROR
    )
    repair: Annotated[bool, Doc("leave layers in floats until the run's limit for the error holds")] = True
    depthwise: Annotated[bool, Doc("quantize depthwise convolutions, too")] = True
    reduce_range: Annotated[bool, Doc("take 7 bits for weights")] = False
    samples: Annotated[int, Range(1), Doc("how many samples to calibrate with")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to quantize; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Find ranges, leave out the layers that lose too much, and write the others."""
        found, left = sites(model, self.only, self.skip, OPERATORS, depthwise=self.depthwise)
        ledger = Ledger(left)
        if not found:
            return Outcome(notes=tuple(ledger.notes()))
        if raise_opset(model):
            ledger.remarks.append("the model has opset 13 now: scales for each channel need it")
        write_native(model)
        samples = Samples(context, self.samples)
        if not samples.divided:
            ledger.remarks.append("errors of layers were measured on the one input that gave the ranges")
        grids = self._grids(model, found, samples)
        weights = {site.number: self._codes(site, grids) for site in found}

        def twins(clone: ir.Model, each: Sequence[Site]) -> list[Twin]:
            return linear_twins(Writer(clone, grids, weights), each)

        def write(clone: ir.Model, each: Sequence[Site]) -> None:
            Writer(clone, grids, weights).write(each)

        kept = sound(model, found, samples.held(), context, twins, self.max_layer_error, ledger)
        if self.repair:
            kept = limited(model, kept, context, write, ledger, self.name)
        write(model, kept)
        return Outcome(notes=tuple(ledger.notes()), worst=ledger.worst)

    def _grids(self, model: ir.Model, found: Sequence[Site], samples: Samples) -> dict[str, Grid]:
        """Return the grid of every value that may have one, by name."""
        bounds = {value.name or "": each for value, each in grids_wanted(model, found).items()}
        spans = ranges(
            model, list(bounds), samples.fitting(), samples.context.runtime, self.calibration, self.percentile
        )
        grids = {name: spanning(*span, within=bounds[name]) for name, span in spans.items()}
        handed_on = {value.name or "": grids[root.name or ""] for value, root in stored(model, found).items()}
        return {**grids, **handed_on}

    def _codes(self, site: Site, grids: Mapping[str, Grid]) -> Coded:
        return weight_codes(site, grids[site.layer.data.name or ""], reduced=self.reduce_range)
