"""How many experts each layer runs, and how many of them always, from one budget for all: an integer program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Final

import numpy as np

from bevel.passes.allocation.menu import Menu
from bevel.passes.allocation.programming import knapsack
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.trial import Fitted, pruning, write
from bevel.passes.outputs import COMPARED, Outputs

# Numbers of active experts that are tried for a layer.
MOST_TRIED: Final = 7
TINY: Final = 1e-12


@dataclass(frozen=True)
class Division:
    """How many experts run for each row, and how many of these always."""

    active: int
    shared: int


@dataclass(frozen=True)
class Rung:
    """A division that was tried on a layer: the error it makes, and that of plain pruning to the same width."""

    division: Division
    error: float
    static: float


@dataclass(frozen=True)
class Allocated:
    """A division for each layer, None where it stays whole, and what that is expected to do to the outputs.

    `error` adds up the squares of what the layers do to them; `static` is that of plain pruning as freely chosen.
    """

    divisions: tuple[Division | None, ...]
    error: float
    static: float

    def __str__(self) -> str:
        told = ", ".join("whole" if each is None else f"{each.active} ({each.shared})" for each in self.divisions)
        return (
            f"active experts of each layer, those shared in brackets: {told}; expected error of the outputs: "
            f"{self.error:.3g}; {self.static:.3g} with plain pruning to widths as freely chosen, refitted"
        )


def divisions(experts: int) -> list[Division]:
    """Return what is tried on a layer: few to nearly all experts active, none or half of them shared.

    >>> [(each.active, each.shared) for each in divisions(3)]
    [(1, 0), (2, 0), (2, 1)]
    """
    actives = np.unique(np.linspace(1, experts - 1, min(experts - 1, MOST_TRIED)).round().astype(int)).tolist()
    return [Division(active, shared) for active in actives for shared in sorted({0, active // 2})]


def allocate(
    tried: Sequence[Sequence[Rung]], sizes: Sequence[int], effects: Sequence[float], experts: int, budget: float
) -> Allocated:
    """Choose a division for each layer so that a share `budget` of all their parameters is active, at the least error.

    `sizes` are the layers' parameters, `effects` what an error of their outputs is in those of the model. Squares of
    errors add up.
    """
    best = [
        _best([Rung(rung.division, effect * rung.error, effect * rung.static) for rung in rungs])
        for rungs, effect in zip(tried, effects, strict=True)
    ]
    shares = np.asarray(sizes) / sum(sizes)
    chosen = _chosen(best, shares, experts, budget, lambda rung: rung.error)
    pruned = _chosen(best, shares, experts, budget, lambda rung: rung.static)
    return Allocated(
        tuple(None if rung is None else rung.division for rung in chosen),
        hypot(*(0.0 if rung is None else rung.error for rung in chosen)),
        hypot(*(0.0 if rung is None else rung.static for rung in pruned)),
    )


def _best(rungs: Sequence[Rung]) -> list[Rung]:
    """Return the rung with the least error for each number of active experts."""
    ordered = sorted(rungs, key=lambda rung: -rung.error)
    return list({rung.division.active: rung for rung in ordered}.values())


def _chosen(
    layers: Sequence[Sequence[Rung]],
    shares: np.ndarray,
    experts: int,
    budget: float,
    error: Callable[[Rung], float],
) -> list[Rung | None]:
    """Return the rung to take of each layer, None for all experts."""
    menus = [
        Menu(
            np.array([experts, *(rung.division.active for rung in rungs)]),
            share * np.array([0.0, *(1 - rung.division.active / experts for rung in rungs)]),
            np.array([0.0, *(error(rung) ** 2 for rung in rungs)]),
        )
        for rungs, share in zip(layers, shares, strict=True)
    ]
    most = float(sum(menu.saved.max() for menu in menus))
    places = knapsack(menus, min(1 - budget, most))
    return [rungs[place - 1] if place else None for rungs, place in zip(layers, places, strict=True)]


def effect(found: Evidence, outputs: Outputs) -> float:
    """Return how far the model's outputs are off, relative to how far the layer's is, when half of it is pruned.

    One where the layer's weights cannot be replaced.
    """
    if not found.movable:
        return 1.0
    kept, fitted, error = pruning(found, found.layer.size // 2, refit=True)
    down = np.zeros_like(fitted.down)
    down[kept] = fitted.down[kept]
    return outputs.error(lambda clone: write(found, Fitted(down, fitted.shift), clone), COMPARED) / max(error, TINY)
