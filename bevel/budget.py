"""Limits on a run's outcome: `size=0.5x`, `error=0.01`, `latency=5ms`, `macs=0.5x`, `parameters=10M`."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bevel.limit import Limit

if TYPE_CHECKING:
    from bevel.report import Report


@dataclass(frozen=True)
class Budget(Limit):
    """A limit that the report of a run is compared with; an error can be limited, too.

    >>> Budget.parse("error=0.01").limit
    0.01
    """

    noun: ClassVar[str] = "budget"
    UNITS: ClassVar[dict[str, dict[str, float]]] = {**Limit.UNITS, "error": {"": 1}}
    ABSOLUTE: ClassVar[frozenset[str]] = frozenset({"error"})

    def check(self, report: "Report") -> "Line":
        """Compare a run with the limit."""
        before, after = _figures(self.metric, report)
        reached = after / before if self.relative and before else after
        return Line(self, reached, not math.isnan(reached) and reached <= self.limit)


@dataclass(frozen=True)
class Line:
    """A budget and what was reached, in the budget's own terms; NaN when it was not measured."""

    budget: Budget
    reached: float
    kept: bool

    def __str__(self) -> str:
        reached = "not measured" if math.isnan(self.reached) else f"{self.reached:.4g}{'x' * self.budget.relative}"
        return f"budget {self.budget}: {'kept' if self.kept else 'MISSED'} ({reached})"


def _figures(metric: str, report: "Report") -> tuple[float, float]:
    """Return a metric before and after the run; an error has no before."""
    if metric == "error":
        return math.nan, report.error
    if metric == "latency":
        return report.deployment.latency_before, report.deployment.latency_after
    field = {"size": "bytes"}.get(metric, metric)
    return getattr(report.before, field), getattr(report.after, field)
