"""Order channels by importance."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir

from bevel.ir.coupling import Freedom
from bevel.ir.edit import permute
from bevel.ir.groups import analyse
from bevel.passes.base import Context, Doc, Outcome, Pass, Preserving, Promise
from bevel.passes.choice import choose, left_out
from bevel.passes.importance import Aggregate, lift


@dataclass(frozen=True)
class ReorderChannels(Pass):
    """Order channels, heads and features by importance, the most important first.

    What it does: sorts every group that allows any order, on all coupled tensors at once. The function stays the same;
    a prefix of every group is then its best part, which nested models, block formats and slicing by hand build on.

    Promise: Preserving.

    Example: reorder-channels{importance=magnitude}

    Source: Devvrit et al. 2024, MatFormer (prefixes as submodels).
    """

    name: ClassVar[str] = "reorder-channels"
    promise: ClassVar[Promise] = Preserving()

    importance: Annotated[str, Doc("what scores the channels: an installed importance")] = "magnitude"
    aggregate: Annotated[Aggregate | None, Doc("how coupled tensors add up; the importance's own way if none")] = None
    only: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to reorder; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Score and sort."""
        analysis = analyse(model)
        groups = choose(analysis, Freedom.PERMUTE, self.only, self.skip)
        scores = lift.score(self.importance, analysis, groups, context, self.aggregate)
        permute(analysis, {name: np.argsort(-values, kind="stable") for name, values in scores.items()})
        notes = (f"{len(groups)} of {len(analysis.groups)} groups reordered",)
        return Outcome(notes=(*notes, *scores.notes, *left_out(analysis.groups, Freedom.PERMUTE)))
