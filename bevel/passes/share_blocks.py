"""Let residual blocks use each other's weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.blocks import find_blocks
from bevel.ir.cost import cost
from bevel.ir.repetition import Layer, same_layers
from bevel.ir.sharing import first_of, models_of, share
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.blocks.angles import angles
from bevel.passes.blocks.influence import drift, least
from bevel.passes.blocks.stretches import refusals, wanted


@dataclass(frozen=True)
class ShareBlocks(Pass):
    """Let layers, or residual blocks, use the weights of the one before them that is built alike.

    What it does: ranks the layers that have a like one before them on their stream, and lets the lowest use its
    matrices; where that one was chosen too, all of them use those of the first. Norms and biases stay each layer's own.
    The file shrinks by what is no longer stored, and so does the memory for weights; the arithmetic, and with it the
    time a run takes, stays the same. Without further training the outputs move far: measure, or train afterwards.

    Promise: Lossy. The error is measured; the notes say what each choice was ranked by.

    Example: share-blocks{count=1 by=output}

    Source: Liu et al. 2024, FoldGPT (there, short training follows); Liu et al. 2024, MobileLLM.
    """

    name: ClassVar[str] = "share-blocks"
    promise: ClassVar[Promise] = Lossy()

    ratio: Annotated[float, Range(0, 1), Doc("share of the layers or blocks to give another's weights")] = 0.25
    count: Annotated[int | None, Range(1), Doc("how many to give another's weights, instead of a share")] = None
    by: Annotated[
        Literal["output", "angular"],
        Doc("rank by the error of the outputs with the other's weights, or by how little a layer turns its stream"),
    ] = "output"
    unit: Annotated[
        Literal["layer", "block"], Doc("share between layers, the blocks that repeat together, or single blocks")
    ] = "layer"
    only: Annotated[tuple[str, ...], Doc("patterns of layers, nodes or tensors to change; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of layers, nodes or tensors to leave alone")] = ()
    samples: Annotated[int, Range(1), Doc("how many calibration samples to measure on")] = SAMPLES

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Rank, choose and share."""
        context = replace(context, samples=self.samples)
        blocks = find_blocks(model)
        units = wanted(blocks, self.unit, (), self.skip, self.name)
        asked = {unit.name for unit in wanted(blocks, self.unit, self.only, self.skip, self.name)}
        likes = {layer: like for layer, like in models_of(units).items() if layer.name in asked}
        ranks = self._lowest(model, likes, len(units), context)
        chosen = {layer: like for layer, like in likes.items() if layer.name in ranks}
        before = cost(model).bytes
        share(model, [(layer, first_of(layer, chosen)) for layer in chosen])
        saved = before - cost(model).bytes
        what = "error of the outputs" if self.by == "output" else "angular distance"
        listed = ", ".join(
            f"{layer.name} uses {first_of(layer, chosen).name} ({ranks[layer.name]:.2g})" for layer in chosen
        )
        note = f"{len(chosen)} of {len(units)} {self.unit}s share weights" + (
            f", by {what}: {listed}" if listed else ""
        )
        size = f"{saved:,} of {before:,} bytes of weights are no longer stored; a run takes as long as before"
        return Outcome(notes=(note, size, *refusals(blocks)))

    def _lowest(
        self, model: ir.Model, likes: Mapping[Layer, Layer], units: int, context: Context
    ) -> Mapping[str, float]:
        """Return the layers that take another's weights, by name, with what they were ranked by."""
        count = self.count if self.count is not None else min(int(units * self.ratio), len(likes))
        if count > len(likes):
            raise EditRefused(
                f"{count} to share weights, but only {len(likes)} {self.unit}s have one of their kind before them",
                where=self.name,
            )
        if not count:
            return {}
        if self.by == "angular":
            return least(angles(model, list(likes), context), count)
        others = []
        for pair in likes.items():
            others.append(model.clone())
            mine, theirs = same_layers(others[-1], pair)
            share(others[-1], [(mine, theirs)])
        errors = drift(model, others, context)
        return least({layer.name: error for layer, error in zip(likes, errors, strict=True)}, count)
