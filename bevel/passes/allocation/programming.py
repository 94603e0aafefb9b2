"""The best choice from the menus by integer programming."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bevel.errors import UnsupportedModel
from bevel.passes.allocation.menu import Menu, menus
from bevel.passes.allocation.problem import Allocate, Problem, Widths

GAP = 0.01
"""How far above the least damage, relatively, the solver may stop: below what a score means. Proving the rest of it
takes ten times as long where scores are nearly alike."""


def milp(problem: Problem) -> Allocate:
    """Choose from the menus with the least damage in sum such that what is required is saved.

    A strength is a share of what all groups cost, one by one. A multiple-choice knapsack, solved by HiGHS.
    """
    table = menus(problem)
    names = list(table.menus)

    def allocate(strength: float) -> Widths:
        choice = knapsack(list(table.menus.values()), table.required(problem.left(strength)))
        return {name: int(table.menus[name].widths[place]) for name, place in zip(names, choice, strict=True)}

    return allocate


def knapsack(choices: Sequence[Menu], required: float, gap: float = GAP) -> list[int]:
    """Return which entry of each menu to take so that `required` is saved at the least damage."""
    if not choices or required <= 0:
        return [0] * len(choices)
    owner = np.repeat(np.arange(len(choices)), [len(menu.widths) for menu in choices])
    saved = np.concatenate([menu.saved for menu in choices])
    damage = np.concatenate([menu.damage for menu in choices])
    taken = _solve(damage, saved, required * (1 - 1e-9), owner, gap)
    return [int(np.argmax(taken[owner == group])) for group in range(len(choices))]


def _solve(damage: np.ndarray, saved: np.ndarray, required: float, owner: np.ndarray, gap: float) -> np.ndarray:
    """Minimise damage @ x for x in {0, 1}, one entry of each owner, and saved @ x >= required."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # scipy takes longer to import than all the rest
    from scipy.sparse import csr_array

    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    found: Any = milp(
        damage / max(np.abs(damage).max(), 1e-30),
        integrality=np.ones(len(damage)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(saved[None, :], required, np.inf)],
        options={"mip_rel_gap": gap},
    )
    if found.x is None:
        raise UnsupportedModel(f"no allocation was found: {found.message}", remedy="use allocation=slope")
    solution: np.ndarray = found.x
    return solution
