"""One price for all: every group gives up entries as long as that damages less than a price per cost saved."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bevel.passes.allocation.menu import Menu, menus
from bevel.passes.allocation.problem import Allocate, Problem, Widths


class Step(NamedTuple):
    """From one width of a group to the next one: damage per cost, the cost saved, and where it leads."""

    slope: float
    saved: float
    group: str
    width: int


def slope(problem: Problem) -> Allocate:
    """Choose from the menus where their damage curves have one slope, and what is required is saved.

    A strength is a share of what all groups cost, one by one. Source: the Lagrangian allocation of LPViT (Xu et al.
    2024). The slopes of all steps are sorted once, so the multiplier need not be searched.
    """
    table = menus(problem)
    steps = sorted(step for name, menu in table.menus.items() for step in descent(name, menu))
    reached = np.cumsum([step.saved for step in steps])
    full = {name: int(menu.widths[0]) for name, menu in table.menus.items()}

    def allocate(strength: float) -> Widths:
        required = table.required(problem.left(strength))
        taken = int(np.searchsorted(reached, required * (1 - 1e-12))) + 1 if required > 0 else 0
        return full | {step.group: step.width for step in steps[:taken]}

    return allocate


def descent(name: str, menu: Menu) -> list[Step]:
    """Return the steps along the lower convex hull of a menu, the gentlest first.

    >>> menu = Menu(np.array([3, 2, 1]), np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 4.0]))
    >>> [(step.width, step.slope) for step in descent("a", menu)]
    [(1, 2.0)]
    """
    hull = [0]
    for place in range(1, len(menu.widths)):
        while len(hull) > 1 and _slope(menu, hull[-1], place) <= _slope(menu, hull[-2], hull[-1]):
            hull.pop()
        if menu.saved[place] > menu.saved[hull[-1]]:
            hull.append(place)
    return [
        Step(_slope(menu, a, b), float(menu.saved[b] - menu.saved[a]), name, int(menu.widths[b]))
        for a, b in pairwise(hull)
    ]


def _slope(menu: Menu, a: int, b: int) -> float:
    saved = menu.saved[b] - menu.saved[a]
    return float((menu.damage[b] - menu.damage[a]) / saved) if saved > 0 else np.inf
