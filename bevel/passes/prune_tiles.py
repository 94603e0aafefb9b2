"""Set whole tiles of weights to zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.choice import chosen_layers
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import Moments
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.sparsity.masks import lowest, wanted
from bevel.passes.sparsity.slopes import by_slope, energy
from bevel.passes.sparsity.tiles import Tile, errors_alone, refit
from bevel.passes.sparsity.zeros import Ledger, orders, output_error, put_lazily, walk

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PruneTiles(Pass):
    """Set the tiles of weights that matter least to zero; shapes stay.

    What it does: cuts the matrix of every MatMul, Gemm, Conv and ConvTranspose with a weight of its own into tiles of
    so many outputs by so many input channels (with all taps of a kernel), and zeroes the ones that damage least: by
    their squared weights (`magnitude`), by those times the inputs' squares (`wanda`), or by the exact error of the
    output when the rest of their rows makes up for them (`obs`). `tile=16x16` is a block for a block-sparse kernel,
    `4x1` the 1xN pattern of four outputs that skip the same input channel. `allocation=uniform` takes the same share of
    every layer; `slope` takes tiles where they damage least per weight, relative to the layer's output, but leaves
    every layer half of what stays on average. `refit` gives the tiles that stay their least-squares values. All but
    plain magnitude look at the calibration data (made up if there are none), layer after layer, each with what the
    zeros before it left of its inputs.

    ONNX Runtime has no kernel that skips tiles, so no time is gained there; the report says what compression gains. To
    be faster in ONNX Runtime, remove whole channels (prune-channels).

    Promise: Lossy. That the wanted number of zeros is there is checked besides.

    Example: prune-tiles{tile=16x16 sparsity=0.5 method=obs allocation=slope refit=true}

    Source: Xu et al. 2024, LPViT; Lin et al. 2022, 1xN Pattern for Pruning; Kurtic et al. 2023, ZipLM (scores, refit).
    """

    name: ClassVar[str] = "prune-tiles"
    promise: ClassVar[Promise] = Lossy()

    tile: Annotated[str, Doc("outputs x input channels of a tile")] = "16x16"
    sparsity: Annotated[float, Range(0, 1), Doc("share of the weights, or of each layer's tiles, to zero")] = 0.5
    method: Annotated[Literal["magnitude", "wanda", "obs"], Doc("how to score a tile")] = "magnitude"
    allocation: Annotated[
        Literal["uniform", "slope"], Doc("the same share of every layer, or where it damages least")
    ] = "uniform"
    refit: Annotated[bool, Doc("least-squares values for the tiles that stay")] = False
    samples: Annotated[int, Range(1), Doc("how many samples to take statistics over")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to prune; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to leave alone")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            Tile.parse(self.tile)
        except UsageError as error:
            raise UsageError(error.what, where=self.name, remedy=error.remedy) from None

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Score all layers if they share a budget, then zero one after the other."""
        context = replace(context, samples=self.samples)
        found, left = chosen_layers(model, self.only, self.skip)
        counts = self._counts(model, found, context) if self.allocation == "slope" and found else None
        ledger = Ledger()
        looks = self.method != "magnitude" or self.refit
        for layer, moment in walk(model, found, context, looks=looks):
            self._zero(layer, moment, counts, ledger)
        return Outcome(notes=(*ledger.notes(model), *left))

    def _counts(self, model: ir.Model, found: Sequence[Layer], context: Context) -> Mapping[ir.Value, int]:
        """Return how many tiles each weight gives up, judged before anything is zeroed."""
        owners, slopes, sizes = [], [], []
        for layer, moment in walk(model, found, context, looks=self.method != "magnitude"):
            weights, tile, each = layer.content(), self._tile(layer), orders(moment)
            size = tile.sums(np.ones(weights.shape)).ravel()
            owners.append(layer.weight)
            sizes.append(size)
            slopes.append(self._scores(weights, each, tile).ravel() / energy(weights, each) / size)
        return dict(zip(owners, by_slope(slopes, sizes, self.sparsity), strict=True))

    def _zero(
        self, layer: Layer, moment: Moments | None, counts: Mapping[ir.Value, int] | None, ledger: Ledger
    ) -> None:
        source, tile, each = layer.tensor, self._tile(layer), orders(moment)
        original, error = layer.content(source), np.nan
        scores = self._scores(original, each, tile)
        count = _share(self.sparsity, scores.size) if counts is None else counts[layer.weight]
        dropped = tile.spread(lowest(scores, count), original.shape)
        if moment is None:
            put_lazily(layer, partial(_smallest_dropped, tile, count))
        else:
            weights = refit(original, dropped, each, tile) if self.refit else np.where(dropped, 0.0, original)
            layer.put(weights)
            error = output_error(original, weights, moment.second)
        ledger.note(layer, source, int(dropped.sum()), error, places=scores.size)

    def _scores(self, weights: Array, each: list[SecondOrder], tile: Tile) -> Array:
        if self.method == "magnitude":
            return tile.sums(weights**2)
        if self.method == "wanda":
            return tile.sums(weights**2 * np.stack([np.diag(moment.damped) for moment in each])[:, None])
        return errors_alone(weights, each, tile)

    def _tile(self, layer: Layer) -> Tile:
        return Tile.parse(self.tile).times(layer.taps)


def _smallest_dropped(tile: Tile, count: int, weights: Array) -> Array:
    """Return weights without the tiles of the smallest squares."""
    return np.where(tile.spread(lowest(tile.sums(weights**2), count), weights.shape), 0.0, weights)


def _share(sparsity: float, tiles: int) -> int:
    """Return how many tiles to drop; one stays unless all are to go."""
    return wanted(sparsity, tiles) if sparsity == 1 else min(wanted(sparsity, tiles), tiles - 1)
