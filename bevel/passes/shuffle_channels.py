"""Permute every group at random: the proof that the groups of a model are right."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir

from bevel.ir.edit import permute
from bevel.ir.groups import Group, groups
from bevel.passes.base import Context, Doc, Outcome, Pass, Preserving, Promise


@dataclass(frozen=True)
class ShuffleChannels(Pass):
    """Permute every group that allows it at random.

    What it does: nothing but renumber channels, everywhere at once. `bevel inspect --check` runs it: if a group were
    wrong, the outputs would change.

    Promise: Preserving.

    Example: shuffle-channels{only="fc1.weight[0]"}
    """

    name: ClassVar[str] = "shuffle-channels"
    promise: ClassVar[Promise] = Preserving()
    only: Annotated[tuple[str, ...], Doc("the groups to permute; all if empty")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Permute the groups with orders drawn from the seed."""
        chosen = [group for group in shuffled(groups(model)) if not self.only or group.name in self.only]
        rng = np.random.default_rng(context.seed)
        permute(model, {group.name: rng.permutation(group.size) for group in chosen})
        return Outcome(notes=(f"{len(chosen)} groups permuted",))


def shuffled(found: Iterable[Group]) -> list[Group]:
    """Return the groups that a random order can say something about."""
    return [group for group in found if group.allows("permute") and group.size > 1]
