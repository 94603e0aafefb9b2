"""Turn dense feed-forward layers into mixtures of experts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel import registry
from bevel.errors import UsageError
from bevel.ir.bypass import redirect
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.canonical.shapes import apply_hints, forget_contents, infer_shapes, take_declared
from bevel.ir.names import Names
from bevel.ir.opset import raise_opset
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.experts.account import account
from bevel.passes.experts.budget import Division, Rung, allocate, divisions, effect
from bevel.passes.experts.candidates import candidates
from bevel.passes.experts.emissions import EMISSIONS, Integers, Race, check, likeness, race
from bevel.passes.experts.evidence import Evidence, evidence
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.splitters import variations
from bevel.passes.experts.trial import Trial, attempt, sharing, write
from bevel.passes.experts.writing import RAISED, Writer
from bevel.passes.outputs import Outputs


@dataclass(frozen=True)
class ConvertMoe(Pass):
    """Turn dense feed-forward layers into mixtures of experts, of which each token runs a few.

    What it does: finds every feed-forward layer, plain and gated, of matrices and of 1x1 convolutions, and divides its
    hidden entries among equal experts. Some are shared: they run for every token. Of the others a router takes the same
    number for each token. `splitter` says how entries are divided, `router` how experts are scored: from the weights
    alone, fitted to which experts would be best on the calibration data, or, with trained and trained-mlp, in a few
    seconds of PyTorch to the error that its choices make. What trained-mlp wins depends on how much it sees: of what
    the best experts would take off the error of a small GPT's layers, a third of it with 3,000 tokens to fit on, over
    two thirds with 12,000; a linear router less than half. With `refit` the last product is fitted to what it gave
    before. Nothing else is trained. CMoE's recipe is splitter=rates router=analytic refit=false, ExpertWeaver's
    splitter=profiles router=mean-gate shared=none refit=false.

    With a `threshold`, a token takes its best experts until their softmaxed scores reach it in sum, `active` at most.
    With a `budget`, the numbers of active and shared experts are chosen layer by layer, by an integer program over the
    errors that trials made and what errors of a layer do to the outputs, so that this share of the layers' parameters
    is active; some layers may stay whole.

    The notes say how far each layer's output is off on tokens held back, how far it would be with the best experts, and
    how far plain pruning to the same active width is, refitted as well. Where that is no worse, a mixture is not worth
    its routing; control=use prunes there.

    emit=blocks runs an expert under a condition, on the tokens that take it: standard ONNX, and emit=dynamic the same
    with products in 8 bits, their inputs quantized at run time. emit=moe and emit=qmoe are ONNX Runtime's operators,
    qmoe with weights of 4 or 8 bits; they have relu, silu, gelu, and silu(gate) * up. emit=gather copies the weights of
    the experts taken, for single rows. emit=masked computes everything and multiplies by zeros, which is no faster, and
    what the others are checked against. emit=auto measures all that are right on so many `rows`, and takes the fastest;
    integers take part if their error is at most `tolerance`.

    Promise: Lossy. The emitted nodes compute what the layer computes with the hidden entries of experts not taken
    zeroed; that is checked layer by layer before anything is written.

    Example: convert-moe{experts=16 active=8 shared=4 splitter=kmeans router=logistic}

    Source: Zhang et al. 2022, MoEfication; Pei et al. 2025, CMoE; ExpertWeaver 2026; Zhao et al. 2024, FactorLLM;
    Zheng et al. 2025, Dense2MoE. The fit after routing and the static control are ours.
    """

    name: ClassVar[str] = "convert-moe"
    promise: ClassVar[Promise] = Lossy()

    experts: Annotated[int, Range(2), Doc("how many experts a layer becomes, shared ones included")] = 8
    active: Annotated[int, Range(1), Doc("how many of them run for each token, shared ones included")] = 6
    shared: Annotated[
        int | None, Range(0), Doc("how many of them always run; none: by how much activations vary (ExpertWeaver)")
    ] = 3
    budget: Annotated[
        float | None, Range(0, 1), Doc("share of the layers' parameters to be active, in place of active and shared")
    ] = None
    threshold: Annotated[
        float | None, Range(0, 1), Doc("take experts until their softmaxed scores reach this in sum, active at most")
    ] = None
    splitter: Annotated[str, Doc("who is in which expert: an installed splitter (bevel splitters)")] = "coactivation"
    router: Annotated[str, Doc("what scores the experts: an installed router (bevel routers)")] = "logistic"
    gates: Annotated[
        Literal["one", "share", "softmax"],
        Doc("what routed experts are multiplied by: 1, routed by taken (FactorLLM), or softmax of scores times taken"),
    ] = "one"
    refit: Annotated[bool, Doc("fit the last product to what it gave before, on the calibration data")] = True
    control: Annotated[
        Literal["report", "use", "skip"], Doc("compare with plain pruning, do that where it is no worse, or neither")
    ] = "report"
    emit: Annotated[
        Literal["blocks", "dynamic", "moe", "qmoe", "gather", "masked", "auto"],
        Doc("how mixtures run: under conditions, in operators, by copies, or everything; auto: what is fastest"),
    ] = "blocks"
    rows: Annotated[int, Range(1), Doc("tokens at a time for which emit=auto takes the fastest")] = 1
    tolerance: Annotated[float, Range(0), Doc("relative error that integers may add to a layer, with emit=auto")] = 0.0
    bits: Annotated[int, Range(4, 8), Doc("of a weight, with emit=qmoe: 4 or 8")] = 4
    block: Annotated[int, Range(16, 256), Doc("weights that share a scale, with emit=qmoe")] = 32
    samples: Annotated[int, Range(1), Doc("inputs to gather statistics from: rows of the first axis")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("groups or tensors to convert, op:TYPE, depth:0-5; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("groups or tensors to leave alone, op:TYPE, depth:0-5")] = ()

    def __post_init__(self) -> None:
        """Check the options, and that they fit each other."""
        super().__post_init__()
        for known, name in ((registry.splitters(), self.splitter), (registry.routers(), self.router)):
            known[name]  # raises if it is not there
        if self.budget is None and not (self.shared or 0) < self.active <= self.experts:
            raise UsageError(
                f"{self.active} of {self.experts} experts cannot run if {self.shared or 0} of them are shared",
                where=self.name,
                remedy="shared < active <= experts",
            )
        if self.bits not in (4, 8):
            raise UsageError(f"bits={self.bits} is not there", where=self.name, remedy="QMoE has 4 and 8")
        if self.threshold is not None and (self.gates == "share" or self.emit in ("moe", "qmoe")):
            raise UsageError(
                "with a threshold tokens take different numbers of experts",
                where=self.name,
                remedy="gates=one or softmax; emit=blocks, dynamic, gather or auto",
            )
        if self.router == "oracle" and self.emit != "masked":
            raise UsageError("the oracle computes all experts", where=self.name, remedy="take it with emit=masked")

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Try every layer on the calibration data, then write the mixtures."""
        context = replace(context, samples=self.samples)
        raised = (RAISED,) * raise_opset(model)
        layers, left = candidates(model, context, self.experts, self.only, self.skip, self.name)
        gathered = list(evidence(model, layers, context))
        wanted, told = self._divisions(gathered, context)
        rng = np.random.default_rng(context.seed)
        trials = [
            (found, self._trial(found, division, context, rng))
            for found, division in zip(gathered, wanted, strict=True)
            if division is not None
        ]
        emits, races = self._emissions(trials, context)
        names = Names(model)
        for (found, trial), emit in reversed([*zip(trials, emits, strict=True)]):
            self._write(found, trial, emit, names)  # what an earlier layer gives may be what a later one reads
            _know_shapes(model)  # before conditions of an earlier layer put what follows them in doubt
        remove_dead(model)
        mixed = [(found, trial) for found, trial in trials if not self._static(trial)]
        return Outcome(notes=(*account(trials, mixed, self.experts, self.control), *told, *races, *raised, *left))

    def _divisions(self, found: Sequence[Evidence], context: Context) -> tuple[list[Division | None], list[str]]:
        """Return how many experts each layer runs, None where it stays whole, and what to say of that."""
        if self.budget is None:
            return [self._division(each) for each in found], []
        tried: list[list[Rung]] = []
        outputs = Outputs(found[0].parts.model, context)
        for each in found:
            rng = np.random.default_rng(context.seed)
            trials = [
                (division, self._trial(each, division, context, rng, bound=False))
                for division in divisions(self.experts)
            ]
            tried.append([Rung(division, trial.error, trial.static) for division, trial in trials])
        sizes, effects = [each.parameters for each in found], [effect(each, outputs) for each in found]
        chosen = allocate(tried, sizes, effects, self.experts, self.budget)
        return list(chosen.divisions), [str(chosen)]

    def _division(self, found: Evidence) -> Division:
        """Return the numbers that the options give."""
        if self.shared is not None:
            return Division(self.active, self.shared)
        return Division(self.active, sharing(variations(found), self.experts, self.active - 1))

    def _trial(
        self, found: Evidence, division: Division, context: Context, rng: np.random.Generator, *, bound: bool = True
    ) -> Trial:
        """Divide a layer's entries, make a router, and measure."""
        shared, active = division.shared, division.active - division.shared
        routed, each = self.experts - shared, found.layer.size // self.experts
        partition = registry.splitters()[self.splitter](found, routed, shared * each, rng)
        router = registry.routers()[self.router](found, partition, active)
        gain = routed / active if self.gates == "share" else 1.0
        mixture = Mixture(partition, router, active, gain, self.threshold, self.gates == "softmax")
        control = self.control != "skip" or self.budget is not None
        return attempt(found, mixture, context.runtime, refit=self.refit, control=control, bound=bound)

    def _emissions(self, trials: Sequence[tuple[Evidence, Trial]], context: Context) -> tuple[list[str], list[str]]:
        """Return how each mixture is to run, each checked against the mask, and what to say of that."""
        integers = Integers(self.bits, self.block)
        if self.emit != "auto":
            for found, trial in trials:
                check(found, trial.mixture, self.emit, integers)
            return [self.emit] * len(trials), []
        races: dict[tuple[object, ...], Race] = {}
        emits: list[str] = []
        for found, trial in trials:
            kind = likeness(found)
            if kind not in races:
                races[kind] = race(found, trial.mixture, context.runtime, self.rows, self.tolerance, integers)
            emits.append(races[kind].fastest)
            check(found, trial.mixture, emits[-1], integers)
        return emits, [f"{each.fastest} is taken; {each}" for each in races.values()]

    def _write(self, found: Evidence, trial: Trial, emit: str, names: Names) -> None:
        """Put a mixture, or the pruned layer, in the place of a layer."""
        static = self._static(trial)
        if found.movable and (self.refit or static):
            write(found, trial.pruned if static else trial.fitted)
        if not static:
            emitter = EMISSIONS[emit].prepare(found, trial.fitted.down, Integers(self.bits, self.block))
            emitter(found.parts, trial.mixture, names)
            return
        layer, graph = found.layer, found.parts.model.graph
        writer = Writer(graph, layer.down, f"{layer.name}.pruned", names, layer.input.dtype or ir.DataType.FLOAT)
        result = writer.graft(found.parts.expert(trial.kept, bias=True), layer.input, "layer")
        redirect(graph, layer.output, result, names)

    def _static(self, trial: Trial) -> bool:
        return self.control == "use" and trial.static_wins


def _know_shapes(model: ir.Model) -> None:
    """Infer the shapes of what was written; those known already stay."""
    hints = take_declared(model)
    infer_shapes(model)
    forget_contents(model)
    apply_hints(hints)
