"""What is said of mixtures: how much rests, how evenly experts are taken, how far outputs are off and could be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np

from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.trial import CHUNK, Trial

Tried: TypeAlias = Sequence[tuple[Evidence, Trial]]

MOST_NAMED: Final = 8


def account(trials: Tried, mixed: Tried, experts: int, control: str) -> Iterator[str]:
    """Say what was done to layers and how good it is; `mixed` are those that are mixtures now."""
    if mixed:
        yield _made(mixed, experts)
        yield _parameters(mixed)
        yield _routing([trial for _, trial in mixed])
    if trials:
        yield from _errors(trials, control)


def _made(mixed: Tried, experts: int) -> str:
    shared = [experts - trial.mixture.experts for _, trial in mixed]
    active = [number + trial.mixture.active for number, (_, trial) in zip(shared, mixed, strict=True)]
    rest = _mean([1 - trial.width / found.layer.size for found, trial in mixed])
    most = "at most " if any(trial.mixture.threshold is not None for _, trial in mixed) else ""
    return (
        f"{len(mixed)} feed-forward layers are mixtures of {experts} experts, {_span(shared)} of them shared, "
        f"{most}{_span(active)} active: {rest:.0%} of the hidden entries rest for each token"
    )


def _span(numbers: Sequence[int]) -> str:
    """Return one number, or from where to where they go.

    >>> _span([2, 2]), _span([3, 1, 2])
    ('2', '1 to 3')
    """
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)} to {max(numbers)}"


def _parameters(mixed: Tried) -> str:
    """Say how many of the layers' parameters each token meets."""
    total = router = 0
    active = 0.0
    for found, trial in mixed:
        size = found.parameters
        total, active = total + size, active + size * trial.width / found.layer.size
        router += trial.mixture.router.size
    return (
        f"{round(active):,} of {total:,} parameters of these layers are active for a token, and {router:,} of routers"
    )


def _routing(mixed: Sequence[Trial]) -> str:
    """Say how sparse tokens and chunks of them are (BlockFFN's TLS and CLS), and how even the load is."""
    return (
        f"of the experts that are routed, {_mean([trial.rest for trial in mixed]):.0%} rest for a token, and "
        f"{_mean([trial.idle for trial in mixed]):.0%} rest for {CHUNK} tokens in a row; "
        f"the one most in demand is taken {max(trial.load for trial in mixed):.2g} times the mean"
    )


def _errors(trials: Tried, control: str) -> Iterator[str]:
    """Say how far outputs are off, and would be with the best experts and with plain pruning."""
    found, compared = [trial for _, trial in trials], control != "skip"
    static = f"; {_mean([trial.static for trial in found]):.3g} with plain pruning to the same active width, refitted"
    yield (
        f"relative error of a layer's output, on average: {_mean([trial.error for trial in found]):.3g}; "
        f"{_mean([trial.oracle for trial in found]):.3g} with the best experts{static * compared}"
    )
    wins = sum(trial.static_wins for trial in found)
    if wins:
        done = "which is what was done there" if control == "use" else "control=use takes it there"
        yield f"plain pruning is no worse in {wins} of {len(found)} layers: {done}"
    ordered = sorted(trials, key=lambda pair: -pair[1].error)[:MOST_NAMED]
    yield "worst: " + ", ".join(f"{each.layer.name} {_told(trial, compared)}" for each, trial in ordered)


def _told(trial: Trial, compared: bool) -> str:
    pruned = f", pruned {trial.static:.3g}" if compared else ""
    return f"{trial.error:.3g} (best experts {trial.oracle:.3g}{pruned})"


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers)) if numbers else float("nan")
