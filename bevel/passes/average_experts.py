"""Fold mixtures of experts back into one dense layer each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, UsageError
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.mixtures.alignment import joined, likeness, mean, order
from bevel.passes.mixtures.description import Expert, Mixture
from bevel.passes.mixtures.matching import Alignment, matched
from bevel.passes.mixtures.usage import Usage
from bevel.passes.mixtures.work import Change, rewrite

Array = np.ndarray[Any, Any]

# Experts whose weights have at least this cosine, entry by entry, are copies that grew apart; weights that have nothing
# to do with each other have one near 0, with a spread of 1 / sqrt(weights).
ALIKE: Final = 0.5
# Gates that add up to the number of experts taken, as nearly as this, let each count one on average: parts do. Others,
# whatever factor is on top (DeepSeek-V3 has 2.5), weigh alternatives.
COUNTED: Final = 0.01


@dataclass(frozen=True)
class AverageExperts(Pass):
    """Fold mixtures of experts back into one dense layer each.

    What it does: finds mixtures of experts from what they compute (com.microsoft's MoE and QMoE, experts under
    conditions, stacked weights from which rows are gathered, exporters' loops over experts), and puts one layer of
    feed-forward form in the place of each. How depends on what the experts are to each other:

    copies, trained further from one layer, have the same entry at the same place: their mean is taken. Experts that
    were trained apart are first put into the order of hidden entries in which they are most like the most used one
    (`align`), by linear assignment on their weights or on their activations. The mean of experts that nothing makes
    alike is taken as well, if their gates add up to one, and the report says how little alike they are.

    parts of one layer, whose outputs are added up, are joined into a layer that has the hidden entries of all.

    how=auto tells them apart: gates that are equal for all experts taken, or add up to their number, and no entries
    alike, say parts. Asking for the mean of parts, or for the sum of alternatives, is refused.

    A shared expert, which every row takes as it is, gives the layer its entries as well: a layer that was divided into
    a shared expert and others comes back as one. One with a gate of its own, or another activation, stays beside it.

    Promise: Lossy; where all parts run, or all copies are equal and gates add up to the same for every row, what is
    written gives the same up to the order of sums, which is checked and said.

    Example: average-experts{weights=frequency align=activations}

    Source: Huang et al. 2023, Experts Weights Averaging; Ainsworth et al. 2023, Git Re-Basin.
    """

    name: ClassVar[str] = "average-experts"
    promise: ClassVar[Promise] = Lossy()

    how: Annotated[Literal["auto", "mean", "join"], Doc("mean of copies, or join parts; auto finds out which")] = "auto"
    weights: Annotated[
        Literal["uniform", "frequency"], Doc("what experts count in a mean: the same, or how often they are taken")
    ] = "uniform"
    shares: Annotated[
        tuple[str, ...], Doc("what each expert counts instead, e.g. 2,1,1,0: numbers in the order of the router")
    ] = ()
    align: Annotated[
        Alignment, Doc("what entries are matched by before a mean; auto: by weights, unless they are alike already")
    ] = "auto"
    samples: Annotated[int, Range(1), Doc("inputs to gather statistics from: rows of the first axis")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("mixtures by name of router or output, * for anything; all if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("mixtures to leave alone")] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.shares:
            self._shares(len(self.shares))

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Find the mixtures, decide what each becomes, check that, and write it."""
        return rewrite(self, model, context, self._change, "are dense layers", shared=True)

    def _change(self, usage: Usage, context: Context) -> Change:
        mixture = usage.mixture
        alike = _alike(mixture.experts)
        if self._joins(mixture, alike):
            expert = _with_shared(joined(mixture.experts).scaled(_gain(mixture)), mixture)
            return Change(
                usage, (expert,), None, f"{len(mixture.experts)} parts joined{_told(mixture)}, {expert.size} entries"
            )
        shares = self._counted(usage)
        by = "none" if self.align == "auto" and alike >= ALIKE else self.align
        like = int(usage.counts.argmax())
        ordered = matched(mixture, mixture.experts, like, usage.rows, by, context.runtime)
        said = f"mean of {len(ordered)} experts{_told(mixture)}, alike by {_alike(ordered):.2f}"
        if by != "none":
            said += f" (by {alike:.2f} before they were put in order)"
        expert = _with_shared(mean(ordered, shares).scaled(usage.total), mixture)
        return Change(usage, (expert,), None, said)

    def _joins(self, mixture: Mixture, alike: float) -> bool:
        """Say whether experts are parts to be joined; raises `EditRefused` for what makes no sense."""
        where = f"{self.name}: {mixture.name}"
        total = mixture.gating.total(mixture.active)
        sums = mixture.gating.kind in ("one", "counted") and mixture.active > 1
        summed = sums or (total is not None and mixture.active > 1 and abs(total / mixture.active - 1) <= COUNTED)
        if not summed and mixture.gating.kind != "one":
            if self.how == "join":
                raise EditRefused(
                    "its gates weigh alternatives against each other; the sum of all experts is no such thing",
                    where=where,
                    remedy="how=mean takes their mean; prune-experts and merge-experts keep a mixture",
                )
            return False
        alike = max(alike, _alike([each.ordered(order(each, mixture.experts[0])) for each in mixture.experts]))
        if alike >= ALIKE:
            if self.how == "join":
                raise EditRefused(
                    f"its experts are copies (alike by {alike:.2f}); together they would count several times",
                    where=where,
                    remedy="how=mean takes their mean",
                )
            return False
        if not summed and self.how == "auto":
            raise EditRefused(
                "each row takes one expert as it is, which says neither that they are parts nor that they are copies",
                where=where,
                remedy="how=join if they were made by dividing one layer, how=mean if not",
            )
        if self.how == "mean" and summed:
            raise EditRefused(
                f"its experts are parts of one layer: a row takes the sum of {mixture.active}, and they are not alike "
                f"({alike:.2f}); a mean of different hidden entries is none of them",
                where=where,
                remedy="how=join puts the entries of all side by side",
            )
        return self.how != "mean"

    def _counted(self, usage: Usage) -> Array:
        """Return what each expert counts in a mean, shares that add up to one."""
        count = len(usage.mixture.experts)
        if self.shares:
            return self._shares(count)
        return usage.shares if self.weights == "frequency" else np.full(count, 1 / count)

    def _shares(self, count: int) -> Array:
        """Return the user's weights, as shares that add up to one."""
        try:
            numbers = np.array([float(text) for text in self.shares])
        except ValueError as error:
            raise UsageError(
                f"shares={','.join(self.shares)} are no numbers", where=self.name, remedy="e.g. shares=2,1,1,0"
            ) from error
        if len(numbers) != count or (numbers < 0).any() or not numbers.sum() > 0 or not np.isfinite(numbers).all():
            raise UsageError(
                f"{len(numbers)} shares do not say what {count} experts count",
                where=self.name,
                remedy="one number for each, none below zero, not all of them zero",
            )
        return np.asarray(numbers / numbers.sum())


def _with_shared(expert: Expert, mixture: Mixture) -> Expert:
    """Return a layer with the entries of the shared expert, too, which every row takes."""
    return expert if mixture.shared is None else joined([expert, mixture.shared])


def _told(mixture: Mixture) -> str:
    return "" if mixture.shared is None or not mixture.shared.size else " and the shared one"


def _alike(experts: Sequence[Expert]) -> float:
    """Return how alike those two experts are that are least alike, entry by entry."""
    return min((likeness(*pair) for pair in combinations(experts, 2)), default=1.0)


def _gain(mixture: Mixture) -> float:
    """Return what parts count when all of them run.

    Where rows take some, they count 1 each, or parts by taken (FactorLLM): the layer they came of has them at 1.
    """
    each = mixture.gating.each(mixture.active)
    some = mixture.active < len(mixture.experts)
    return 1.0 if some and np.isclose(each, len(mixture.experts) / mixture.active) else each
