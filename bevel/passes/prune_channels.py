"""Remove the channels that matter least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel.ir.edit import FREE_TO_DROP, mask, select
from bevel.ir.groups import Group, analyse
from bevel.passes.base import Context, Doc, Masked, Outcome, Pass, Promise, Range
from bevel.passes.choice import choose, left_out, outermost
from bevel.passes.importance import lift


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the channels, heads and features that matter least.

    What it does: scores every entry of every group that allows it and drops the lowest, on all coupled tensors at once:
    residual streams of convolutional networks, hidden features, attention heads, key-value groups. Where an axis is a
    product (heads times head size) only the outermost factor shrinks, so that no axis loses more than `ratio`. Graph
    inputs and outputs, and axes over which a normalisation takes statistics, stay.

    Promise: Masked. The result computes what the input computes with the consumers of the dropped channels zeroed.
    Accuracy falls with the ratio, unless something repairs it afterwards.

    Example: prune-channels{ratio=0.25 importance=magnitude round-to=8}

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets; Fang et al. 2023, DepGraph.
    """

    name: ClassVar[str] = "prune-channels"
    promise: ClassVar[Promise] = Masked()

    ratio: Annotated[float, Range(0, 1), Doc("share of the channels to remove; every group keeps at least one")] = 0.5
    importance: Annotated[str, Doc("what scores the channels: an installed importance")] = "magnitude"
    scope: Annotated[
        Literal["local", "global"],
        Doc("compare within each group, or across groups on normalised scores"),
    ] = "local"
    round_to: Annotated[int, Range(1), Doc("round the channels kept up to a multiple of this")] = 1
    only: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to prune; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Score, choose and drop."""
        analysis = analyse(model)
        candidates = choose(analysis.groups, FREE_TO_DROP, self.only, self.skip)
        groups = outermost(analysis, [group for group in candidates if self._width(group.size) < group.size])
        scores = lift.score(self.importance, analysis, groups, context)
        keeps = self._keeps(groups, scores)
        select(analysis, keeps)
        notes = (f"{len(keeps)} of {len(analysis.groups)} groups pruned", *scores.notes)
        notes = (*notes, *left_out(analysis.groups, FREE_TO_DROP))
        return Outcome(reference=lambda original: mask(original, keeps), notes=notes)

    def _keeps(self, groups: Sequence[Group], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the entries to keep of every group that loses some, in their old order."""
        widths = self._global_widths(groups, scores) if self.scope == "global" else {}
        keeps = {}
        for group in groups:
            width = widths.get(group.name, self._width(group.size))
            if width < group.size:
                order = np.argsort(-scores[group.name], kind="stable")
                keeps[group.name] = np.sort(order[:width])
        return keeps

    def _width(self, size: int) -> int:
        return self._rounded(size - int(size * self.ratio), size)

    def _rounded(self, width: int, size: int) -> int:
        return min(max(-(-width // self.round_to) * self.round_to, 1), size)

    def _global_widths(self, groups: Sequence[Group], scores: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Return how many entries of each group lie above one threshold for all."""
        if not groups:
            return {}
        threshold = np.quantile(np.concatenate([scores[group.name] for group in groups]), self.ratio)
        return {group.name: self._rounded(int((scores[group.name] >= threshold).sum()), group.size) for group in groups}
