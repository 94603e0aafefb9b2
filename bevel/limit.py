"""Amounts of what a model costs, as users write them: `size=0.5x`, `parameters=10M`, `macs=0.5x`, `latency=5ms`."""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from bevel.errors import UsageError, nearest

FORM = re.compile(r"(?P<number>\d+(\.\d*)?(e-?\d+)?)(?P<unit>[a-zA-Z]*)")


@dataclass(frozen=True)
class Limit:
    """A `metric` at most `limit`, a multiple of what it was before if `relative`.

    >>> str(Limit.parse("size=0.5x"))
    'size=0.5x'
    >>> Limit.parse("parameters=10M").limit
    10000000.0
    """

    metric: str
    limit: float
    relative: bool
    text: str

    noun: ClassVar[str] = "limit"
    UNITS: ClassVar[dict[str, dict[str, float]]] = {
        "size": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9},
        "parameters": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
        "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
        "latency": {"ms": 1, "s": 1e3},
    }
    ABSOLUTE: ClassVar[frozenset[str]] = frozenset()
    """Metrics that have no before, so no multiples of it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a limit; raises `UsageError` for metrics and units that do not exist."""
        metric, _, amount = text.partition("=")
        if metric not in cls.UNITS:
            raise UsageError(f"no {cls.noun} is called {metric!r}", where=cls.noun, remedy=nearest(metric, cls.UNITS))
        units = cls.UNITS[metric]
        match = FORM.fullmatch(amount)
        relative = match is not None and match["unit"] == "x" and metric not in cls.ABSOLUTE
        if match is None or not (relative or match["unit"] in units):
            allowed = [f"{metric}=10{unit}" for unit in units] + [f"{metric}=0.5x"] * (metric not in cls.ABSOLUTE)
            raise UsageError(f"{text!r} is not a limit", where=cls.noun, remedy=f"write {' or '.join(allowed)}")
        scale = 1.0 if relative else units[match["unit"]]
        return cls(metric, float(match["number"]) * scale, relative, text)

    def __str__(self) -> str:
        return self.text

    def share(self, before: float) -> float:
        """Return the limit as a multiple of what was before."""
        return self.limit if self.relative else self.limit / before
