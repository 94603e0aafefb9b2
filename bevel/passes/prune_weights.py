"""Set single weights to zero."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.choice import chosen_layers
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import Moments
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.sparsity.feedback import BLOCK, factor, prune
from bevel.passes.sparsity.masks import lowest, lowest_by_output, lowest_of_every, wanted
from bevel.passes.sparsity.slopes import counts_by_slope, curve, energy
from bevel.passes.sparsity.swaps import Local
from bevel.passes.sparsity.zeros import Ledger, orders, output_error, put_lazily, walk

Array = np.ndarray[Any, Any]

# Zeros in every so many consecutive inputs of an output.
PATTERNS: Final = {"2:4": (2, 4), "4:8": (4, 8)}
PATTERN_SHARE: Final = 0.5
# Outputs times inputs that swaps look at together.
TOGETHER: Final = 1 << 21


@dataclass(frozen=True)
class PruneWeights(Pass):
    """Set the single weights that matter least to zero; shapes stay.

    What it does: chooses, in every MatMul, Gemm, Conv and ConvTranspose with a weight of its own, which weights become
    zero. `magnitude` takes the smallest of the layer. `wanda` takes, of each output, the smallest products of weight
    and input norm. `obs` goes through the inputs in order, 128 at a time, and lets the weights not yet seen make up for
    each one dropped (SparseGPT). `swaps` then exchanges kept and dropped weights of an output while that lowers the
    error of the layer's output, and `refit` moves the kept ones towards their least-squares values. All but plain
    magnitude look at the calibration data (made up if there are none), layer after layer, each with what the zeros
    before it left of its inputs. With `pattern`, exactly half of every 4 or 8 consecutive inputs of an output go, in
    the order of channels, the taps of a channel one after the other; what is left at the end of a row stays.
    `allocation=uniform` zeroes the same share of every layer; `slope` zeroes more where single zeros do less to a
    layer's output, relative to that, but leaves every layer half of what stays on average.

    ONNX Runtime gains no speed from zeros, in a pattern or not, and the file keeps its size until it is compressed: the
    report says what that gives. To be faster, remove whole channels (prune-channels).

    Promise: Lossy. That the wanted number of zeros is there is checked besides.

    Example: prune-weights{sparsity=0.6 method=obs skip=head*}

    Source: Frantar and Alistarh 2023, SparseGPT; Sun et al. 2024, Wanda; Rosenberg et al. 2024, iCBS (swaps).
    """

    name: ClassVar[str] = "prune-weights"
    promise: ClassVar[Promise] = Lossy()

    sparsity: Annotated[float, Range(0, 1), Doc("share of the weights to zero; a pattern fixes it")] = 0.5
    method: Annotated[Literal["magnitude", "wanda", "obs"], Doc("how to choose them")] = "magnitude"
    allocation: Annotated[
        Literal["uniform", "slope"], Doc("the same share of every layer, or where it damages least")
    ] = "uniform"
    pattern: Annotated[Literal["none", "2:4", "4:8"], Doc("zeros in every so many consecutive inputs, or anywhere")] = (
        "none"
    )
    swaps: Annotated[int, Range(0), Doc("how many kept weights of an output may be exchanged for dropped ones")] = 0
    refit: Annotated[int, Range(0), Doc("conjugate-gradient steps towards the best values of the kept weights")] = 0
    samples: Annotated[int, Range(1), Doc("how many samples to take statistics over")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to prune; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to leave alone")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != "none" and (self.sparsity != PATTERN_SHARE or self.allocation != "uniform"):
            raise UsageError(
                f"pattern={self.pattern} fixes the sparsity of every layer at {PATTERN_SHARE}",
                where=self.name,
                remedy="leave sparsity and allocation away, or take pattern=none",
            )

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Divide the zeros among the layers, then write them into one after the other."""
        context = replace(context, samples=self.samples)
        found, left = chosen_layers(model, self.only, self.skip)
        shares = self._shares(model, found, context)
        ledger = Ledger()
        looks = self.method != "magnitude" or self.swaps + self.refit > 0
        for layer, moment in walk(model, found, context, looks=looks):
            if moment is None:
                self._by_size(layer, shares[layer.weight], ledger)
            else:
                self._by_error(layer, moment, shares[layer.weight], ledger)
        return Outcome(notes=(*ledger.notes(model), *left))

    def _shares(self, model: ir.Model, found: Sequence[Layer], context: Context) -> Mapping[ir.Value, float]:
        """Return the share of each weight that becomes zero, judged before anything does."""
        if self.allocation == "uniform" or not found:
            return {layer.weight: self.sparsity for layer in found}
        curves = {}
        for layer, moment in walk(model, found, context, looks=self.method != "magnitude"):
            weights, each = layer.content(), orders(moment)
            curves[layer.weight] = curve(self._scores(weights, each) / energy(weights, each))
        counts = counts_by_slope(list(curves.values()), self.sparsity)
        sizes = (float(size.sum()) for _, size in curves.values())
        return {weight: count / size for weight, count, size in zip(curves, counts, sizes, strict=True)}

    def _scores(self, weights: Array, each: list[SecondOrder]) -> Array:
        """Return what dropping each weight alone does."""
        if self.method == "magnitude":
            return weights**2
        if self.method == "wanda":
            factors = np.stack([np.diag(moment.damped) for moment in each])
        else:
            factors = 1 / np.stack([np.diag(moment.inverse) for moment in each])
        scores: Array = weights**2 * factors[:, None]
        return scores

    def _by_size(self, layer: Layer, share: float, ledger: Ledger) -> None:
        source = layer.tensor
        put_lazily(layer, lambda weights: np.where(self._lowest(weights**2, share), 0.0, weights))
        ledger.note(layer, source, self._wanted(layer.content(source).shape, share))

    def _by_error(self, layer: Layer, moment: Moments, share: float, ledger: Ledger) -> None:
        source, each = layer.tensor, orders(moment)
        original = layer.content(source)
        weights, dropped = self._pruned(original, each, share)
        for group, order in enumerate(each if self.swaps or self.refit else ()):
            self._improve(original[group], weights[group], dropped[group], order.damped)
        layer.put(weights)
        ledger.note(layer, source, self._wanted(original.shape, share), output_error(original, weights, moment.second))

    def _pruned(self, original: Array, each: list[SecondOrder], share: float) -> tuple[Array, Array]:
        """Return the weights with zeros, and where these are."""
        if self.method == "obs":
            factors, weights = np.stack([factor(moment.inverse) for moment in each]), original.copy()
            return weights, prune(weights, factors, self._chooser(original.shape, share), self._of or BLOCK)
        dropped = self._lowest(self._scores(original, each), share)
        return np.where(dropped, 0.0, original), dropped

    def _chooser(self, shape: tuple[int, ...], share: float) -> Callable[[Array, int], Array]:
        """Return what chooses among the next columns, so that the zeros up to any of them are the wanted share."""
        rows = shape[0] * shape[1]

        def choose(scores: Array, start: int) -> Array:
            if self._of:
                return lowest_of_every(scores, *PATTERNS[self.pattern])
            stop = start + scores.shape[2]
            return lowest(scores, wanted(share, rows * stop) - wanted(share, rows * start))

        return choose

    def _lowest(self, scores: Array, share: float) -> Array:
        """Return the mask of the lowest scores: of the layer, or, with wanda, of each output."""
        if self._of:
            return lowest_of_every(scores, *PATTERNS[self.pattern])
        if self.method == "wanda":
            return lowest_by_output(scores, share)
        return lowest(scores, wanted(share, scores.size))

    def _improve(self, original: Array, weights: Array, dropped: Array, moment: Array) -> None:
        """Swap and refit some outputs at a time, in place."""
        step = max(TOGETHER // original.shape[1], 1)
        for start in range(0, len(original), step):
            rows = slice(start, start + step)
            local = Local(original[rows], weights[rows], dropped[rows], moment)
            local.swap(self.swaps, self._of)
            local.refit(self.refit)

    def _wanted(self, shape: tuple[int, ...], share: float) -> int:
        groups, out, inner = shape
        if not self._of:
            return wanted(share, groups * out * inner)
        zeros, of = PATTERNS[self.pattern]
        return groups * out * (inner // of) * zeros

    @property
    def _of(self) -> int:
        """How many inputs a pattern speaks of; 0 without one."""
        return PATTERNS[self.pattern][1] if self.pattern != "none" else 0
