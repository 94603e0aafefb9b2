"""How much each entry of a group matters: what an importance is, and how one is declared.

An importance is a function from groups to scores, found through the entry points `bevel.importances`. It says how each
part of a group scores each entry, a part being a coupled tensor or a consumer; `lift` makes one score of the parts.
A group of which it can say nothing is left out of its answer, and then scored by `magnitude`.

@importance(aggregate="norm")
def magnitude(analysis, groups, context):
    return {group.name: parts of shape [tensors, group.size] for group in groups}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.allocation import Named
from bevel.passes.base import Context

__all__ = ["Aggregate", "Importance", "Normalize", "Scores", "declared", "importance"]

Aggregate: TypeAlias = Literal["sum", "mean", "max", "prod", "norm"]
Normalize: TypeAlias = Literal["mean", "sum", "max", "std", "none"]


class Scores(Protocol):
    """Scores the entries of groups; larger is more important."""

    def __call__(self, analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
        """Return an array [size] or [parts, size] for each group, by the group's name."""


@dataclass(frozen=True)
class Importance:
    """A function that scores, how its parts become one score, and what groups lose, unless the user says otherwise.

    A plain function counts as one whose parts are added, and whose scores are divided by the mean of their group;
    `allocation` is what `prune-channels` does with the scores; `made_up` what it does with those of made-up inputs, if
    it is something else.
    """

    scores: Scores
    aggregate: Aggregate = "sum"
    normalize: Normalize = "mean"
    allocation: Named = "uniform"
    made_up: Named | None = None

    def __call__(self, analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
        """Return an array [size] or [parts, size] for each group, by the group's name."""
        return self.scores(analysis, groups, context)


def importance(
    aggregate: Aggregate = "sum",
    normalize: Normalize = "mean",
    allocation: Named = "uniform",
    made_up: Named | None = None,
) -> Callable[[Scores], Importance]:
    """Declare a function to be an importance, with its natural way to join parts and to compare groups."""
    return lambda scores: Importance(scores, aggregate, normalize, allocation, made_up)


def declared(found: Scores) -> Importance:
    """Return an importance as it was declared, or a plain function as one."""
    return found if isinstance(found, Importance) else Importance(found)
