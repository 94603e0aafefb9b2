"""How far to go: a share of the channels, a cost that is predicted, or a latency that is measured."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bevel.ir.cost import cost
from bevel.ir.edit import select
from bevel.limit import Limit
from bevel.passes.allocation.fit import fit
from bevel.passes.allocation.keeps import best
from bevel.passes.allocation.measured import search
from bevel.passes.allocation.problem import Allocate, Metric, Problem, Widths
from bevel.passes.base import Context

METRICS: Mapping[str, Metric] = {"parameters": "parameters", "size": "bytes", "macs": "macs", "latency": "macs"}
"""What is predicted for each metric of a target: latency follows the multiply-accumulates, as long as kernels do."""


class Target(Limit):
    """What a pruned model may cost."""

    noun: ClassVar[str] = "target"


class Aim(ABC):
    """How much goes in the end, as a `share` of what there is, and how widths for a share are found."""

    share: float
    metric: Metric = "macs"
    strongest: float = 1.0
    """The share that a group which all lose alike can lose at most."""

    def done(self, share: float) -> float:
        """Return how much of the groups has gone when a share has, as allocations understand it."""
        return 0.0

    @abstractmethod
    def widths(self, problem: Problem, allocate: Allocate, share: float) -> tuple[Widths, tuple[str, ...]]:
        """Return the widths at which `share` of what there was is gone, and what to say about them."""


@dataclass
class Ratio(Aim):
    """A share of the channels."""

    share: float

    def __post_init__(self) -> None:
        self.strongest = self.share

    def done(self, share: float) -> float:
        """Return the share itself: it is the strength of allocations."""
        return share

    def widths(self, problem: Problem, allocate: Allocate, share: float) -> tuple[Widths, tuple[str, ...]]:
        """Allocate at this strength."""
        return allocate(share), ()


class Predicted(Aim):
    """Parameters, bytes or multiply-accumulates, as close to the target as the widths permit from below."""

    def __init__(self, target: Target, model: ir.Model) -> None:
        self.target = target
        self.metric = METRICS[target.metric]
        self.before: int = getattr(cost(model), self.metric)
        self.share = max(0.0, 1 - target.share(max(self.before, 1)))

    def widths(self, problem: Problem, allocate: Allocate, share: float) -> tuple[Widths, tuple[str, ...]]:
        """Find the strength at which the forecast is what it may be."""
        widths = fit(allocate, problem.figure, (1 - share) * self.before, str(self.target))
        reached = problem.figure(widths) / max(self.before, 1)
        return widths, (f"target {self.target}: {reached:.3f}x predicted",)


class Measured(Predicted):
    """Latency in ONNX Runtime, measured in turns with that of the original."""

    def __init__(self, target: Target, model: ir.Model, context: Context) -> None:
        super().__init__(target, model)
        self.original = model.clone()
        self.context = context
        self.feed = next(iter(context.calibration))
        now = 1.0 if target.relative else context.runtime.latencies([self.original], self.feed)[0]
        self.share = max(0.0, 1 - target.share(now))

    def widths(self, problem: Problem, allocate: Allocate, share: float) -> tuple[Widths, tuple[str, ...]]:
        """Measure candidates at the last step; steps before it go by what is predicted."""
        if share < self.share or not share:
            return super().widths(problem, allocate, share)
        found = search(
            lambda macs: self._at(problem, allocate, macs),
            lambda widths: problem.figure(widths) / self.before,
            lambda widths: self._measure(problem, widths),
            1 - self.share,
            str(self.target),
        )
        return found.widths, (
            f"target {self.target}: {found.latency:.3f}x measured, at {found.macs:.3f}x of the multiply-accumulates",
        )

    def _at(self, problem: Problem, allocate: Allocate, macs: float) -> Widths:
        """Return the widths that leave a share of the multiply-accumulates, or the least ones."""
        least = problem.figure(allocate(1.0))
        return fit(allocate, problem.figure, max(macs * self.before, least), str(self.target))

    def _measure(self, problem: Problem, widths: Widths) -> float:
        candidate = problem.analysis.model.clone()
        select(candidate, best(problem.scores, widths))
        before, after = self.context.runtime.latencies([self.original, candidate], self.feed)
        return after / before
