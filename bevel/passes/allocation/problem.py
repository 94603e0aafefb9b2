"""What an allocation decides on, and what it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from bevel.ir.cost import Cost
from bevel.ir.forecast import Forecast
from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context

Widths: TypeAlias = dict[str, int]
"""How many entries each group keeps, by the group's name."""

Metric: TypeAlias = Literal["parameters", "bytes", "macs"]


@dataclass(frozen=True)
class Problem:
    """Groups that can lose entries, and what an allocation may know of them; everything is by the group's name.

    `scores` of different groups can be compared. `ladders` has the widths that a group may have, ascending, the last
    one being all that it has now. `sizes` is what groups had before the first step of a schedule, and `done` the
    share that earlier steps removed. `metric` is what widths are to save.
    """

    analysis: Analysis
    groups: Sequence[Group]
    scores: Mapping[str, np.ndarray]
    ladders: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    context: Context
    metric: Metric = "macs"
    done: float = 0.0

    @cached_property
    def forecast(self) -> Forecast:
        """What the model costs under other widths; made when it is first asked for."""
        return Forecast(self.analysis)

    def left(self, strength: float) -> float:
        """Return the share of what is there now that goes, for `strength` of what was there before the first step."""
        return 1 - (1 - strength) / (1 - self.done) if self.done < strength else 0.0

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """Return what the model will cost with these widths."""
        return self.forecast.cost({group.dim: widths[group.name] for group in self.groups if group.name in widths})

    def figure(self, widths: Mapping[str, int]) -> int:
        """Return what the model will cost with these widths, in the metric that counts."""
        found: int = getattr(self.cost(widths), self.metric)
        return found

    def widths(self, wanted: Mapping[str, float]) -> Widths:
        """Round widths up to those that groups may have; at least the least, at most all."""
        return {name: round_up(self.ladders[name], width) for name, width in wanted.items()}


Allocate: TypeAlias = Callable[[float], Widths]
"""From a strength, 0 to 1, to the widths of all groups; more strength never leaves more."""

Allocation: TypeAlias = Callable[[Problem], Allocate]


def round_up(ladder: np.ndarray, width: float) -> int:
    """Return the first rung that is not below a width.

    >>> round_up(np.array([8, 16, 20]), 9)
    16
    """
    rung = int(np.searchsorted(ladder, width))
    return int(ladder[min(rung, len(ladder) - 1)])
