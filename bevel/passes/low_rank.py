"""Put two small layers in the place of a large one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.ir.cost import cost
from bevel.ir.names import Names
from bevel.passes.allocation.aim import METRICS, Target
from bevel.passes.allocation.problem import Metric
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.choice import chosen_layers
from bevel.passes.factoring.factors import Factors, best_factors
from bevel.passes.factoring.ranks import By, choose, menu, most, shape_of, slope_of
from bevel.passes.factoring.split import split
from bevel.passes.fitting.layers import WEIGHT, Layer, hold
from bevel.passes.fitting.moments import Moments, moments
from bevel.passes.fitting.shift import bias_of, can_shift
from bevel.passes.formats.blocks import finite
from bevel.passes.sentences import listed

Array = np.ndarray[Any, Any]

DEFAULT_RATIO: Final = 0.5
MOST_NAMED: Final = 8


@dataclass(frozen=True)
class LowRank(Pass):
    """Put two small layers in the place of a large one.

    What it does: factors the weight of a MatMul, Gemm, Conv or ConvTranspose into two thin ones by a singular value
    decomposition: a matrix becomes two, a convolution one with its kernel to fewer channels and one of 1x1. With
    `metric=inputs` the error of the layer's output on the calibration data counts instead of that of the weight, the
    bias takes over what the mean of the input loses, and every layer is factored for what it reads by then. A layer is
    only replaced where that makes it smaller; one whose weight others use stays, too.

    How much goes: a `ratio` of the weights of these layers, a `target` for parameters, size or macs of the model, or
    one `rank` for all. Ranks are divided among the layers where they cost the least relative error of a layer's output
    (`allocation=slope`, or `milp`), or so that all save the same share (`uniform`). Those of convolutions are multiples
    of the block of channels that kernels take at once.

    Promise: Lossy. The error is measured; the notes name the layers whose own output is farthest off.

    Example: low-rank{target="macs=0.6x" metric=inputs skip=head*}

    Source: Denton et al. 2014, Exploiting Linear Structure; Wang et al. 2024, SVD-LLM (in the metric of the inputs).
    """

    name: ClassVar[str] = "low-rank"
    promise: ClassVar[Promise] = Lossy()

    ratio: Annotated[
        float | None, Range(0, 1), Doc("share of the layers' weights to save; 0.5 where nothing else is given")
    ] = None
    target: Annotated[str | None, Doc('what the model may cost: "macs=0.5x", parameters or size')] = None
    rank: Annotated[int | None, Range(1), Doc("one rank for all layers")] = None
    metric: Annotated[
        Literal["weights", "inputs"], Doc("whose error to minimise: the weight's, or the output's on the inputs")
    ] = "weights"
    allocation: Annotated[By, Doc("how the ranks are divided: by error, or the same share of every layer")] = "slope"
    samples: Annotated[int, Range(1), Doc("how many samples to take statistics over")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to factor; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to leave alone")] = ()

    def __post_init__(self) -> None:
        """Check the options, and that they do not contradict each other."""
        super().__post_init__()
        if sum(each is not None for each in (self.ratio, self.target, self.rank)) > 1:
            raise UsageError("ratio, target and rank exclude each other", where=self.name, remedy="give one of them")
        if self.target is not None and Target.parse(self.target).metric == "latency":
            raise UsageError(
                "a latency cannot be predicted", where=f"{self.name} target", remedy="give macs, parameters or size"
            )

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Choose ranks, factor layer after layer, then put the factors in their places."""
        context = replace(context, samples=self.samples)
        found, left = chosen_layers(model, self.only, self.skip)
        able = [layer for layer in found if most(layer) > 0 and _alone(layer)]
        ledger = _Ledger(len(found))
        for layer, factors, rank in self._factored(model, self._ranks(model, able, context), context):
            ledger.note(layer, factors, rank)
        names = Names(model)
        for entry in ledger.entries:
            split(entry.layer, *entry.factors, names)
        return Outcome(notes=(*ledger.notes(), *left))

    def _factored(
        self, model: ir.Model, ranks: Mapping[Layer, int], context: Context
    ) -> Iterator[tuple[Layer, Factors, int]]:
        """Give each layer the product of its factors, so that those after it see what they will read."""
        for layer, moment in self._walk(model, list(ranks), context):
            weights, factors = layer.content(), self._factors(layer, moment)
            if factors is None:
                continue
            up, down = factors.of(ranks[layer])
            if moment is not None:
                _shift(layer, weights - up @ down, moment.mean)
                layer.put(up @ down)
            yield layer, factors, ranks[layer]

    def _ranks(self, model: ir.Model, able: Sequence[Layer], context: Context) -> dict[Layer, int]:
        """Return the rank of each layer that is to be factored."""
        if self.rank is not None:
            return {layer: self.rank for layer in able if self.rank <= most(layer)}
        metric, required = self._required(model, able)
        energies: dict[Layer, Array] = {}
        if self.allocation != "uniform":
            for layer, moment in self._walk(model, able, context):
                factors = self._factors(layer, moment)
                if factors is not None:
                    energies[layer] = factors.energies
            able = list(energies)
        menus = {layer: menu(layer, energies.get(layer), metric, context.runtime.block) for layer in able}
        menus = {layer: each for layer, each in menus.items() if each.saved[-1] > 0}
        what = f"ratio={self.ratio or DEFAULT_RATIO:g}" if self.target is None else f"target={self.target}"
        found = choose(list(menus.values()), required, self.allocation, what)
        return {layer: rank for layer, rank in zip(menus, found, strict=True) if rank}

    def _required(self, model: ir.Model, able: Sequence[Layer]) -> tuple[Metric, float]:
        """Return what is to be saved, and how much of it."""
        if self.target is None:
            size = sum(int(np.prod(layer.sizes)) for layer in able)
            return "parameters", size * (DEFAULT_RATIO if self.ratio is None else self.ratio)
        target = Target.parse(self.target)
        metric = METRICS[target.metric]
        before: int = getattr(cost(model), metric)
        return metric, before * (1 - target.share(max(before, 1)))

    def _walk(
        self, model: ir.Model, found: Sequence[Layer], context: Context
    ) -> Iterator[tuple[Layer, Moments | None]]:
        """Yield the layers with the moments of what they read, where that counts."""
        if self.metric == "inputs":
            yield from moments(model, found, context)
        else:
            yield from ((layer, None) for layer in found)

    def _factors(self, layer: Layer, moment: Moments | None) -> Factors | None:
        """Return the factors of a layer; None where its weights or moments are not finite."""
        weights = layer.content()
        if not finite(weights) or (moment is not None and not moment.finite):
            return None
        if moment is None:
            return best_factors(weights)
        return best_factors(weights, moment.about(_bias(layer) is not None), moment.apart)


def _alone(layer: Layer) -> bool:
    """Say whether nobody else reads the weight, or what a node made of it by transposing."""
    read = layer.node.inputs[WEIGHT]
    return read is not None and len(read.uses()) == 1


def _bias(layer: Layer) -> ir.Value | None:
    """Return the vector that can take a constant over, if there is one."""
    return bias_of(layer) if can_shift(layer) else None


def _shift(layer: Layer, change: Array, mean: Array) -> None:
    """Let the bias give what the weights do not give of the mean any more."""
    bias = _bias(layer)
    if bias is None:
        return
    assert bias.const_value is not None
    lost = np.einsum("goi,gi->go", change, mean).ravel()
    hold(bias, bias.const_value.numpy().astype(np.float64) + lost)


@dataclass(frozen=True)
class _Entry:
    """One layer that was factored; `error` is the relative error of what counted: its output, or its weight."""

    layer: Layer
    factors: tuple[Array, Array]
    rank: int
    full: int
    sizes: tuple[int, int]
    error: float

    def __str__(self) -> str:
        return f"{self.layer.weight.name} {self.error:.2g} (rank {self.rank} of {self.full})"


@dataclass
class _Ledger:
    """What was factored so far, of so many layers."""

    asked: int
    entries: list[_Entry] = field(default_factory=list)

    def note(self, layer: Layer, factors: Factors, rank: int) -> None:
        """Note the rank of a layer."""
        _, out, inner = shape_of(layer)
        sizes = int(np.prod(layer.sizes)), slope_of(layer) * rank
        entry = _Entry(layer, factors.of(rank), rank, min(out, inner), sizes, sqrt(factors.lost(rank)))
        self.entries.append(entry)

    def notes(self) -> Iterator[str]:
        """Say what was saved, and which layers are farthest off."""
        before, after = (sum(each.sizes[place] for each in self.entries) for place in (0, 1))
        yield f"{len(self.entries)} of {self.asked} layers factored: {before:,} weights became {after:,}"
        if self.asked > len(self.entries):
            yield f"{self.asked - len(self.entries)} layers stay whole: two would be no smaller, or cost too much error"
        worst = sorted(self.entries, key=lambda each: -each.error)
        if worst:
            yield f"relative error of a layer, worst first: {listed(list(map(str, worst)), MOST_NAMED)}"
