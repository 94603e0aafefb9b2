"""Merge the experts of mixtures into fewer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.mixtures.alignment import clusters, mean, nearness_of_outputs, nearness_of_weights
from bevel.passes.mixtures.choosing import Routing
from bevel.passes.mixtures.description import Expert
from bevel.passes.mixtures.matching import Alignment, matched
from bevel.passes.mixtures.usage import Usage
from bevel.passes.mixtures.work import Change, count_of, rewrite

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MergeExperts(Pass):
    """Merge the experts of mixtures into fewer.

    What it does: joins the experts of each mixture into groups, those that are nearest first, by what they give for the
    calibration inputs or by their weights; puts the members of a group into the order of hidden entries in which they
    are most like the one that is taken most; and takes their mean, each counting as often as it is taken.

    The router stays as it is. Rows choose among the experts that there were, and a merged one counts the sum of what
    its members would have counted: the probability of a group is the sum of its members'. Where rows choose two of one
    group, that one runs once.

    Promise: Lossy; experts that are equal merge into the same function, up to the order of sums.

    Example: merge-experts{ratio=0.5 similarity=weights}

    Source: Li et al. 2024, Merge, Then Compress (MC-SMoE); Chen et al. 2025, HC-SMoE. That gates are added up rather
    than taken from one member is ours.
    """

    name: ClassVar[str] = "merge-experts"
    promise: ClassVar[Promise] = Lossy()

    ratio: Annotated[float, Range(0, 1), Doc("share of the experts that go")] = 0.5
    experts: Annotated[int | None, Range(1), Doc("how many there are to be, instead of a share")] = None
    similarity: Annotated[Literal["outputs", "weights"], Doc("which are near: by what they give, or their weights")] = (
        "outputs"
    )
    align: Annotated[Alignment, Doc("what entries are matched by before a mean is taken; auto: by weights")] = "auto"
    weights: Annotated[
        Literal["uniform", "frequency"], Doc("what experts count in a mean: the same, or how often they are taken")
    ] = "frequency"
    samples: Annotated[int, Range(1), Doc("inputs to gather statistics from: rows of the first axis")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("mixtures by name of router or output, * for anything; all if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("mixtures to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Find the mixtures, group and merge their experts, check that, and write it."""
        return rewrite(self, model, context, self._change, "have fewer")

    def _change(self, usage: Usage, context: Context) -> Change:
        mixture = usage.mixture
        if len({expert.size for expert in mixture.experts}) > 1:
            raise UsageError(
                "its experts have different sizes",
                where=f"{self.name}: {mixture.name}",
                remedy=f"skip={mixture.name}, or prune-experts",
            )
        groups = clusters(self._nearness(usage, context), count_of(len(mixture.experts), self.ratio, self.experts))
        belongs = np.zeros((len(mixture.experts), len(groups)))
        for place, group in enumerate(groups):
            belongs[group, place] = 1
        merged = tuple(self._merged(usage, group, context) for group in groups)
        told = "; ".join("+".join(map(str, group)) for group in groups if len(group) > 1)
        said = f"{len(groups)} of {len(mixture.experts)} experts" + (f", merged: {told}" if told else "")
        return Change(usage, merged, Routing(mixture.active, groups=belongs), said)

    def _nearness(self, usage: Usage, context: Context) -> Array:
        if self.similarity == "outputs":
            return nearness_of_outputs(usage.mixture.outputs(usage.some().rows, context.runtime))
        return nearness_of_weights(usage.mixture.experts, int(usage.counts.argmax()))

    def _merged(self, usage: Usage, group: list[int], context: Context) -> Expert:
        members = [usage.mixture.experts[each] for each in group]
        if len(members) == 1:
            return members[0]
        counts = usage.counts[group].astype(np.float64)
        if self.weights == "uniform" or not counts.sum():
            counts = np.ones(len(group))
        by: Alignment = "weights" if self.align == "auto" else self.align
        ordered = matched(usage.mixture, members, int(counts.argmax()), usage.rows, by, context.runtime)
        return mean(ordered, counts / counts.sum())
