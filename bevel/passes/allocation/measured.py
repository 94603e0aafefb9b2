"""Find the widths at which a model takes as long as it may, by measuring candidates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from bevel.errors import BudgetMissed
from bevel.passes.allocation.problem import Widths

MOST_CANDIDATES = 8
CLOSE = 0.03
"""How far below its target a latency may stay: medians of repeated runs differ by about as much."""
TOLERANCE = 0.05
"""How far above its target the best candidate may be when no more are tried."""
FINE = 0.002
"""The difference of shares of multiply-accumulates below which no other widths are looked for."""
NEAR = 0.15
"""How close to the target a candidate is measured more often: the others only say where to look."""
MOST_REPEATS = 5
CERTAIN = 0.01
"""The standard error of a mean, relatively, at which it is not measured again."""


@dataclass(frozen=True)
class Candidate:
    """Widths, the share of multiply-accumulates that they leave, and the share of time that they took."""

    widths: Widths
    macs: float
    latency: float


def search(
    widths_at: Callable[[float], Widths],
    macs: Callable[[Widths], float],
    measure: Callable[[Widths], float],
    limit: float,
    what: str,
) -> Candidate:
    """Return the widest candidate found whose latency is at most `limit` times the original's.

    `widths_at` gives widths for a share of multiply-accumulates, `macs` the share that widths leave, `measure` their
    latency as a share of the original's in the same rounds. Between two candidates the latency is taken to be a
    straight line; where widths go in steps, and a share gives those of a candidate again, the next step is looked for
    above it. One that is close is measured again, until the median is certain: of many noisy candidates the
    luckiest would otherwise win. Raises `BudgetMissed` if none is within 5% of the limit.
    """
    above, below = Candidate({}, 1.0, 1.0), None
    tried: list[Candidate] = []
    goal = limit * (1 - CLOSE / 2)
    share = goal
    while len(tried) < MOST_CANDIDATES:
        widths = widths_at(share)
        if any(widths == candidate.widths for candidate in tried):
            if below is None or widths != below.widths or above.macs - share < FINE:
                break
            share = (share + above.macs) / 2
            continue
        found = measured(widths, macs(widths), measure, limit)
        tried.append(found)
        if limit * (1 - CLOSE) <= found.latency <= limit:
            return found
        if found.latency > limit:
            above = found
        else:
            below = found
        share = between(above, below, goal)
    return _best(tried, limit, what)


def measured(widths: Widths, macs: float, measure: Callable[[Widths], float], limit: float) -> Candidate:
    """Measure a candidate; one near the limit until the median is certain enough."""
    ratios = [measure(widths)]
    while abs(median(ratios) / limit - 1) <= NEAR and len(ratios) < MOST_REPEATS and uncertain(ratios):
        ratios.append(measure(widths))
    return Candidate(widths, macs, median(ratios))


def uncertain(ratios: Sequence[float]) -> bool:
    """Say whether the mean of measurements may be off by more than what matters.

    >>> uncertain([0.5]), uncertain([0.5, 0.6]), uncertain([0.5, 0.501])
    (True, True, False)
    """
    return len(ratios) < 2 or stdev(ratios) / len(ratios) ** 0.5 > CERTAIN * mean(ratios)


def between(above: Candidate, below: Candidate | None, goal: float) -> float:
    """Return the share of multiply-accumulates at which the straight line between two candidates reaches the goal.

    >>> between(Candidate({}, 1.0, 1.0), Candidate({}, 0.4, 0.4), 0.5)
    0.5
    >>> between(Candidate({}, 0.5, 0.6), None, 0.5)
    0.4166666666666667
    """
    if below is None:
        return above.macs * goal / above.latency
    part = (goal - below.latency) / (above.latency - below.latency)
    return below.macs + min(max(part, 0.1), 0.9) * (above.macs - below.macs)


def _best(tried: list[Candidate], limit: float, what: str) -> Candidate:
    """Return the slowest that is fast enough, or else the fastest if it nearly is."""
    within = [candidate for candidate in tried if candidate.latency <= limit]
    if within:
        return max(within, key=lambda candidate: candidate.latency)
    fastest = min(tried, key=lambda candidate: candidate.latency)
    if fastest.latency <= limit * (1 + TOLERANCE):
        return fastest
    raise BudgetMissed(
        f"was not reached: the fastest of {len(tried)} candidates took {fastest.latency:.3g}x of the time",
        where=f"target {what}",
        remedy="ask for less, allow a smaller min-width, or leave fewer groups alone",
    )
