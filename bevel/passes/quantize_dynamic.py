"""Compute matrix products in 8 bits, their inputs quantized at run time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import onnx_ir as ir

from bevel.ir.opset import raise_opset
from bevel.passes.activations.choice import MOST_OWN_ERROR, limited, sound
from bevel.passes.activations.dynamic import Products
from bevel.passes.activations.errors import Twin
from bevel.passes.activations.ledger import Ledger
from bevel.passes.activations.sites import Site, sites
from bevel.passes.activations.weights import weight_codes
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.fitting.layers import GEMM, MATMUL

OPERATORS: Final = (MATMUL, GEMM)
# The first opset with DynamicQuantizeLinear.
FIRST_OPSET: Final = 11


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Compute matrix products in 8 bits, their inputs quantized at run time.

    What it does: replaces MatMul and Gemm with a constant weight by DynamicQuantizeLinear and MatMulInteger: the weight
    in signed codes with a scale for each output, the input in unsigned codes that span its own extremes. No calibration
    is needed for that; the inputs serve to measure errors. Convolutions stay as they are: ONNX Runtime is slow with
    them in this form, and one scale for a whole image loses much. `quantize-static` is for them.

    A layer stays in floats if its own output, computed in 8 bits alone, has a relative error above `max-layer-error`,
    and, if the run has a limit for the error of the outputs (`--max-error`), if it is one of those that do most to
    them, as many as it takes; with `repair=false` they stay in 8 bits, and the run fails. `reduce-range` takes 7 bits
    for weights, for x86 processors without VNNI instructions, on which sums of products overflow otherwise.

    Promise: Lossy. The layers that stay in floats are named, with the reason.

    Example: quantize-dynamic{max-layer-error=0.05 skip=head*}

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference.
    """

    name: ClassVar[str] = "quantize-dynamic"
    promise: ClassVar[Promise] = Lossy()

    max_layer_error: Annotated[float, Range(0), Doc("relative error of its own output that a layer may have")] = (
        MOST_OWN_ERROR
    )
    repair: Annotated[bool, Doc("leave layers in floats until the run's limit for the error holds")] = True
    reduce_range: Annotated[bool, Doc("take 7 bits for weights")] = False
    samples: Annotated[int, Range(1), Doc("how many samples to measure errors on")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to quantize; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Leave out the layers that lose too much, and write the others."""
        found, left = sites(model, self.only, self.skip, OPERATORS)
        ledger = Ledger(left)
        if not found:
            return Outcome(notes=tuple(ledger.notes()))
        if model.opset_imports.get("", FIRST_OPSET) < FIRST_OPSET and raise_opset(model):
            ledger.remarks.append("the model has opset 13 now: quantization at run time needs 11")
        weights = {site.number: weight_codes(site, reduced=self.reduce_range) for site in found}

        def twins(clone: ir.Model, each: Sequence[Site]) -> list[Twin]:
            return Products(clone, weights).twins(each)

        def write(clone: ir.Model, each: Sequence[Site]) -> None:
            Products(clone, weights).write(each)

        feeds = context.calibration.samples(self.samples)
        kept = sound(model, found, feeds, context, twins, self.max_layer_error, ledger)
        if self.repair:
            kept = limited(model, kept, context, write, ledger, self.name)
        write(model, kept)
        return Outcome(notes=tuple(ledger.notes()), worst=ledger.worst)
