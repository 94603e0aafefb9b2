"""For each group a menu: what it saves to keep fewer entries, and what that damages."""

from dataclasses import dataclass, replace

import numpy as np

from bevel.passes.allocation.problem import Problem

MOST_CHOICES = 32
"""Widths on a menu: a step of 3% of a group is finer than what a score can tell."""


@dataclass(frozen=True)
class Menu:
    """Widths from all to the fewest; with each, the share of the model's cost that it saves, and the damage."""

    widths: np.ndarray
    saved: np.ndarray
    damage: np.ndarray


@dataclass(frozen=True)
class Menus:
    """The menus of all groups. `whole` is what would be saved if every group, one by one, lost all its entries.

    The figures are exact for each group alone. Groups share tensors, so together they save less than the sum.
    """

    menus: dict[str, Menu]
    whole: float

    @property
    def most(self) -> float:
        """What is saved at the least widths."""
        return float(sum(menu.saved[-1] for menu in self.menus.values()))

    def required(self, share: float) -> float:
        """Return what has to be saved for a share of the whole; no more than can be."""
        return min(share * self.whole, self.most)


def menus(problem: Problem) -> Menus:
    """Read what every width of every group saves from a forecast, and what it damages from the scores.

    Where nothing is known of what is to be saved (no shapes, no multiply-accumulates), parameters are.
    """
    if not problem.figure({}):
        problem = replace(problem, metric="parameters")
    total = problem.figure({}) or 1
    found, whole = {}, 0.0
    for group in problem.groups:
        widths = thinned(problem.ladders[group.name])[::-1]
        costs = np.array([problem.figure({group.name: int(width)}) for width in widths])
        found[group.name] = Menu(widths, (total - costs) / total, damage(problem.scores[group.name], widths))
        whole += (total - problem.figure({group.name: 0})) / total
    return Menus(found, whole)


def damage(scores: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Add up the scores of those that are dropped when only so many of the best are kept.

    >>> damage(np.array([3.0, 1.0, 2.0]), np.array([3, 2, 1]))
    array([0., 1., 3.])
    """
    lost = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
    damages: np.ndarray = lost[len(scores) - widths]
    return damages


def thinned(ladder: np.ndarray) -> np.ndarray:
    """Leave rungs out, evenly, where there are more than a menu takes; both ends stay.

    >>> len(thinned(np.arange(1, 769)))
    32
    """
    places = np.linspace(0, len(ladder) - 1, min(len(ladder), MOST_CHOICES))
    left: np.ndarray = ladder[np.unique(places.round().astype(int))]
    return left
