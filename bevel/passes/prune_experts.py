"""Drop the experts of mixtures that are used least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.mixtures.choosing import Routing
from bevel.passes.mixtures.usage import Usage
from bevel.passes.mixtures.work import Change, count_of, rewrite

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PruneExperts(Pass):
    """Drop the experts of mixtures that are used least.

    What it does: counts over the calibration inputs how much each expert of a mixture is used, and drops those that are
    least. Rows choose among the others, as many as before if there are so many. A softmax over the logits of all
    experts stays one over all, so that rows which took none of the dropped ones get what they got before.

    by=frequency counts rows that take an expert, by=gates adds up what it counts for them, by=outputs what it adds to
    the output: its gate times the length of what it gives.

    Promise: Lossy; the report says which share of the choices fell on experts that are gone.

    Example: prune-experts{ratio=0.25 by=outputs}

    Source: Lu et al. 2024, Not All Experts are Equal; Muzio et al. 2024, SEER-MoE.
    """

    name: ClassVar[str] = "prune-experts"
    promise: ClassVar[Promise] = Lossy()

    ratio: Annotated[float, Range(0, 1), Doc("share of the experts to drop")] = 0.25
    experts: Annotated[int | None, Range(1), Doc("how many are to stay, instead of a share")] = None
    by: Annotated[Literal["frequency", "gates", "outputs"], Doc("what says how much an expert is used")] = "gates"
    samples: Annotated[int, Range(1), Doc("inputs to gather statistics from: rows of the first axis")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("mixtures by name of router or output, * for anything; all if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("mixtures to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Find the mixtures, count, check what is left of them, and write it."""
        return rewrite(self, model, context, self._change, "have fewer")

    def _change(self, usage: Usage, context: Context) -> Change:
        mixture = usage.mixture
        if mixture.gating.groups is not None:
            raise EditRefused(
                "its experts were merged, and rows still choose among those that there were",
                where=f"{self.name}: {mixture.name}",
                remedy=f"drop experts before merging; merge-experts makes them fewer now; skip={mixture.name}",
            )
        count = count_of(len(mixture.experts), self.ratio, self.experts)
        if mixture.gating.router is not None and count < mixture.active:
            raise EditRefused(
                f"its router stays as nodes, which choose {mixture.active} experts: {count} are too few",
                where=f"{self.name}: {mixture.name}",
                remedy=f"experts={mixture.active} or more, or merge-experts",
            )
        used = self._used(usage, context)
        kept = np.sort(np.argsort(-used, kind="stable")[:count])
        gone = np.setdiff1d(np.arange(len(used)), kept)
        lost = usage.counts[gone].sum() / max(float(usage.counts.sum()), 1.0)
        said = f"{count} of {len(used)} experts, without {', '.join(map(str, gone)) or 'none'}"
        routing = Routing(min(mixture.active, count), kept=kept)
        experts = tuple(mixture.experts[each] for each in kept)
        return Change(usage, experts, routing, f"{said}, on which {lost:.1%} of the choices fell")

    def _used(self, usage: Usage, context: Context) -> Array:
        """Return how much each expert is used."""
        if self.by == "frequency":
            return usage.counts
        if self.by == "gates":
            return np.asarray(usage.gates.sum(0))
        some = usage.some()
        lengths = np.linalg.norm(usage.mixture.outputs(some.rows, context.runtime), axis=2)
        return np.asarray((some.gates.T * lengths).sum(1))
