"""Drop the residual blocks that matter least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir

from bevel.errors import EditRefused, UsageError
from bevel.ir.blocks import find_blocks
from bevel.ir.bridge import Bridge
from bevel.ir.bypass import bypass, mute
from bevel.ir.repetition import Layer, runs, same_layers
from bevel.passes.base import SAMPLES, Context, Doc, Masked, Outcome, Pass, Promise, Range
from bevel.passes.blocks.angles import angles
from bevel.passes.blocks.bridging import bridges
from bevel.passes.blocks.influence import drift, influences, least
from bevel.passes.blocks.stretches import refusals, wanted


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Drop the residual blocks, or whole layers, that matter least.

    What it does: ranks the residual blocks (`end = start + branch(start)`) by how little they turn the stream, or by
    how little the outputs move without them, and lets the stream pass the lowest by; what only they computed goes. A
    tail that closes every block (the norm of a post-norm transformer, the Relu of a ResNet) goes with its block. With
    `replace`, a linear map of the stream takes the place of each run of dropped blocks, fitted on the calibration
    inputs by least squares. Blocks that change the shape of the stream stay.

    Promise: Masked. The result computes what the input computes with the dropped branches multiplied by zero (and the
    linear maps added). How far the outputs moved from the input's is in the notes.

    Example: drop-blocks{count=2 by=output unit=layer replace=linear}

    Source: Men et al. 2024, ShortGPT; Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers.
    """

    name: ClassVar[str] = "drop-blocks"
    promise: ClassVar[Promise] = Masked()

    ratio: Annotated[float, Range(0, 1), Doc("share of the blocks or layers to drop")] = 0.25
    count: Annotated[int | None, Range(1), Doc("how many to drop, instead of a share")] = None
    by: Annotated[
        Literal["angular", "output"],
        Doc("rank by the angle between a block's start and end, or by the error of the outputs without it"),
    ] = "angular"
    unit: Annotated[
        Literal["block", "layer"], Doc("drop residual blocks one by one, or layers: the blocks that repeat together")
    ] = "block"
    greedy: Annotated[bool, Doc("with by=output: measure the others again after each drop")] = False
    protect: Annotated[int, Range(0), Doc("how many at the beginning and at the end stay")] = 0
    replace: Annotated[
        Literal["none", "diagonal", "linear"],
        Doc("put in their place nothing, a scale and shift of each channel, or a matrix over channels"),
    ] = "none"
    only: Annotated[tuple[str, ...], Doc("patterns of blocks, nodes or tensors to drop; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of blocks, nodes or tensors to keep")] = ()
    samples: Annotated[int, Range(1), Doc("how many calibration samples to measure on")] = SAMPLES

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Rank, choose and pass by."""
        if self.greedy and self.by != "output":
            raise UsageError("greedy=true measures outputs", where=self.name, remedy="add by=output")
        context = replace(context, samples=self.samples)
        blocks = find_blocks(model)
        units = wanted(blocks, self.unit, self.only, self.skip, self.name)
        ranks = self._lowest(model, units, context)
        dropped = {block for unit in units if unit.name in ranks for block in unit.blocks}
        passed = runs(blocks.innermost, dropped)
        fitted = {} if self.replace == "none" else bridges(model, passed, self.replace, context)
        notes = (self._told(ranks, len(units)), *self._drifts(model, passed, fitted, context), *refusals(blocks))
        bypass(model, passed, fitted)
        return Outcome(reference=lambda original: mute(original, same_layers(original, passed), fitted), notes=notes)

    def _lowest(self, model: ir.Model, units: Sequence[Layer], context: Context) -> dict[str, float]:
        """Return the units to drop, by name, with what they were ranked by."""
        free = units[self.protect : len(units) - self.protect]
        count = self.count if self.count is not None else min(int(len(units) * self.ratio), len(free))
        if count > len(free):
            raise EditRefused(f"{count} to drop, but only {len(free)} {self.unit}s can be dropped", where=self.name)
        if not count:
            return {}
        if self.greedy:
            return self._one_by_one(model, free, count, context)
        rank = angles if self.by == "angular" else influences
        return least(rank(model, free, context), count)

    def _one_by_one(self, model: ir.Model, units: Sequence[Layer], count: int, context: Context) -> dict[str, float]:
        """Drop the unit whose absence moves the outputs least, then the next besides it, and so on."""
        found: dict[str, float] = {}
        for _ in range(count):
            errors = influences(model, units, context, off=found)
            found |= least({name: error for name, error in errors.items() if name not in found}, 1)
        return found

    def _told(self, ranks: Mapping[str, float], units: int) -> str:
        what = "angular distance" if self.by == "angular" else "error of the outputs without it"
        listed = ", ".join(f"{name} ({rank:.2g})" for name, rank in ranks.items())
        return f"{len(ranks)} of {units} {self.unit}s dropped" + (f", by {what}: {listed}" if ranks else "")

    def _drifts(
        self, model: ir.Model, passed: Sequence[Layer], fitted: Mapping[str, Bridge], context: Context
    ) -> list[str]:
        """Say how far the outputs move, without and with linear maps in the place of blocks."""
        if not passed:
            return []
        ways = [{}, fitted] if fitted else [{}]
        others = [model.clone() for _ in ways]
        for other, way in zip(others, ways, strict=True):
            bypass(other, same_layers(other, passed), way)
        errors = drift(model, others, context)
        inputs = "made-up inputs" if context.calibration.made_up else "the calibration inputs"
        told = [f"the outputs move by {errors[0]:.2g} of their size on {inputs}"]
        return (
            [*told, f"with linear maps in the place of blocks, on the inputs they were fitted to, by {errors[1]:.2g}"]
            if fitted
            else told
        )
