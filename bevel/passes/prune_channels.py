"""Remove the channels that matter least."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir

from bevel import registry
from bevel.errors import UsageError
from bevel.ir.edit import FREE_TO_DROP, mask, select
from bevel.ir.groups import Analysis, Group, analyse
from bevel.ir.places import places
from bevel.passes.allocation import ALLOCATIONS, Named
from bevel.passes.allocation.aim import Aim, Measured, Predicted, Ratio, Target
from bevel.passes.allocation.keeps import Keeps, best
from bevel.passes.allocation.ladder import ladder, natural_step, step_of
from bevel.passes.allocation.problem import Problem, round_up
from bevel.passes.allocation.schedule import Cut, Schedule, stages
from bevel.passes.base import SAMPLES, Context, Doc, Masked, Outcome, Pass, Promise, Range
from bevel.passes.choice import choose, left_out, outermost, without
from bevel.passes.fitting.refit import Refit, refit, scatter
from bevel.passes.importance import Aggregate, Normalize, declared, lift

DEFAULT_RATIO = 0.5


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the channels, heads and features that matter least.

    What it does: scores every entry of every group that allows it and drops the lowest, on all coupled tensors at once:
    residual streams of convolutional networks, hidden features, attention heads, key-value groups. Where an axis is a
    product (heads times head size) only the outermost factor shrinks, so that no axis loses more than `ratio`;
    `skip=factor:outer` shrinks what is inside heads. Graph inputs and outputs, and axes over which a normalisation
    takes statistics, stay. How much goes is a `ratio` of the channels (of their cost, with allocation=milp, or slope,
    which is what obs has), or a `target` for parameters, size, macs or latency, which ONNX Runtime measures. The report
    names what was left alone, and the node that is the reason.

    With `refit`, what the layers gave before is then restored as far as the channels left can: least squares on
    unlabelled inputs, layer by layer, and new statistics for normalizations. Give it calibration data; without any, it
    makes inputs up (noise, random tokens), which works for networks with BatchNormalization that is not folded yet, and
    for language models, which are given text in their own words.

    Promise: Masked. The result computes what the input computes with the consumers of the dropped channels zeroed; with
    `refit`, what the input computes so with the refitted weights at their places.

    Example: prune-channels{target="macs=0.5x" importance=obs refit=true skip=op:Gemm,depth:0-2}

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets; Fang et al. 2023, DepGraph; Wang et al. 2024,
    Structurally Prune Anything (pruning and refitting without data); `bevel.passes.fitting.refit` describes the fit.
    """

    name: ClassVar[str] = "prune-channels"
    promise: ClassVar[Promise] = Masked()

    ratio: Annotated[
        float | None, Range(0, 1), Doc("share of the channels to remove; 0.5 where no target is given")
    ] = None
    target: Annotated[str | None, Doc('what it may cost: "macs=0.5x", parameters, size or (measured) latency')] = None
    importance: Annotated[str, Doc("what scores the channels: an installed importance")] = "magnitude"
    aggregate: Annotated[Aggregate | None, Doc("how coupled tensors add up; the importance's own way if none")] = None
    normalize: Annotated[Normalize | None, Doc("how groups are compared; the importance's own way if none")] = None
    allocation: Annotated[
        Named | None,
        Doc("how many a group loses: the same share, by scores, angles, damage per cost; the importance's way if none"),
    ] = None
    round_to: Annotated[
        int | None, Range(1), Doc("keep a multiple of so many channels; none: what kernels like, for a latency, else 1")
    ] = None
    min_width: Annotated[int, Range(1), Doc("entries that every group keeps at least")] = 1
    steps: Annotated[int, Range(1), Doc("prune a part, score again, and so on: how often")] = 1
    schedule: Annotated[Schedule, Doc("how much each step takes")] = "linear"
    refit: Annotated[bool, Doc("fit the layers that are left to what they gave before, on unlabelled inputs")] = False
    samples: Annotated[int, Range(1), Doc("inputs to gather statistics from: rows of the first axis")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("groups or tensors to prune, op:TYPE, depth:0-5; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("groups or tensors to leave alone, op:TYPE, depth:0-5")] = ()

    def __post_init__(self) -> None:
        """Check the options, and that they do not contradict each other."""
        super().__post_init__()
        if self.target is not None:
            Target.parse(self.target)
        if self.target is not None and self.ratio is not None:
            raise UsageError("ratio and target exclude each other", where=self.name, remedy="give one of them")

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Score, choose and drop; then refit, if asked to."""
        context = replace(context, samples=self.samples)
        analysis = analyse(model)
        keeps, notes = self._decide(analysis, context)
        original = model.clone() if self.refit else None
        select(analysis, keeps)
        fitted = Refit() if original is None else refit(original, model, keeps, context)

        def reference(given: ir.Model) -> None:
            scatter(given, keeps, fitted.contents)
            mask(given, keeps)

        return Outcome(reference=reference, notes=(*notes, *fitted.notes), where=places(analysis, keeps))

    def _decide(self, analysis: Analysis, context: Context) -> tuple[Keeps, tuple[str, ...]]:
        """Return the entries to keep, found in steps on clones, each step on what the one before it left."""
        aim = self._aim(analysis.model, context)
        groups, spared = self._groups(analysis, aim, context)
        cut, done = Cut(analysis, {group.name: group.size for group in groups}), 0.0
        notes: tuple[str, ...] = ()
        for share in stages(aim.share, self.steps, self.schedule):
            problem, said = self._problem(cut, aim, aim.done(done), context)
            widths, reached = aim.widths(problem, ALLOCATIONS[self._allocation(context)](problem), share)
            cut, done, notes = cut.after(best(problem.scores, widths)), share, (*said, *reached)
        return cut.keeps, (f"{len(cut.keeps)} of {len(analysis.groups)} groups pruned", *notes, *spared)

    def _allocation(self, context: Context) -> Named:
        own, inputs = declared(registry.importances()[self.importance]), context.calibration
        if self.allocation is None and own.made_up is not None and inputs.made_up and not inputs.likely():
            return own.made_up
        return self.allocation or own.allocation

    def _aim(self, model: ir.Model, context: Context) -> Aim:
        if self.target is None:
            return Ratio(DEFAULT_RATIO if self.ratio is None else self.ratio)
        target = Target.parse(self.target)
        return Measured(target, model, context) if target.metric == "latency" else Predicted(target, model)

    def _groups(self, analysis: Analysis, aim: Aim, context: Context) -> tuple[list[Group], list[str]]:
        """Return the groups that can lose entries, at most one factor of each axis, and why the others cannot."""
        chosen = choose(analysis, FREE_TO_DROP, self.only, self.skip)
        able = [group for group in chosen if self._least(analysis, group, aim, context) < group.size]
        taken = outermost(analysis, able)
        free = [group for group in analysis.groups if group.allows(FREE_TO_DROP)]
        others = {
            "not asked for": without(free, chosen),
            "no smaller width is allowed": without(chosen, able),
            "another factor of the same axis shrinks": without(able, taken),
        }
        return taken, left_out(analysis.groups, FREE_TO_DROP, others)

    def _least(self, analysis: Analysis, group: Group, aim: Aim, context: Context) -> int:
        """Return how far a group can shrink when all lose alike."""
        wanted = group.size - int(group.size * aim.strongest)
        return round_up(self._ladder(analysis, group, aim, context), wanted)

    def _ladder(self, analysis: Analysis, group: Group, aim: Aim, context: Context) -> np.ndarray:
        if self.round_to is not None:
            step = step_of(analysis, group, self.round_to)
        else:
            step = natural_step(analysis, group, context.runtime.block) if isinstance(aim, Measured) else 1
        return ladder(group.size, step, self.min_width)

    def _problem(self, cut: Cut, aim: Aim, done: float, context: Context) -> tuple[Problem, tuple[str, ...]]:
        """Score what is there now."""
        present, groups = cut.present, cut.groups
        scores = lift.score(self.importance, present, groups, context, self.aggregate, self.normalize)
        groups = [group for group in groups if group.name in scores]
        ladders = {group.name: self._ladder(present, group, aim, context) for group in groups}
        problem = Problem(present, groups, scores, ladders, cut.sizes, context, metric=aim.metric, done=done)
        return problem, scores.notes
