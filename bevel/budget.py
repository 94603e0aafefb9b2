"""Limits on a run's outcome: `size=0.5x`, `error=0.01`, `latency=5ms`, `macs=0.5x`, `parameters=10M`."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bevel.errors import UsageError, nearest

if TYPE_CHECKING:
    from bevel.report import Report

FORM = re.compile(r"(?P<number>\d+(\.\d*)?(e-?\d+)?)(?P<unit>[a-zA-Z]*)")


@dataclass(frozen=True)
class Budget:
    """One limit: `metric` at most `limit`, a multiple of what it was before if `relative`.

    >>> str(Budget.parse("size=0.5x"))
    'size=0.5x'
    >>> Budget.parse("parameters=10M").limit
    10000000.0
    """

    metric: str
    limit: float
    relative: bool
    text: str

    UNITS: ClassVar[dict[str, dict[str, float]]] = {
        "size": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9},
        "parameters": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
        "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
        "latency": {"ms": 1, "s": 1e3},
        "error": {"": 1},
    }

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget; raises `UsageError` for metrics and units that do not exist."""
        metric, _, amount = text.partition("=")
        if metric not in cls.UNITS:
            raise UsageError(f"no budget is called {metric!r}", where="budget", remedy=nearest(metric, cls.UNITS))
        units = cls.UNITS[metric]
        match = FORM.fullmatch(amount)
        relative = match is not None and match["unit"] == "x" and metric != "error"
        if match is None or not (relative or match["unit"] in units):
            allowed = [f"{metric}=10{unit}" for unit in units] + ([f"{metric}=0.5x"] if metric != "error" else [])
            raise UsageError(f"{text!r} is not a limit", where="budget", remedy=f"write {' or '.join(allowed)}")
        scale = 1.0 if relative else units[match["unit"]]
        return cls(metric, float(match["number"]) * scale, relative, text)

    def __str__(self) -> str:
        return self.text

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
