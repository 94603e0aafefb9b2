"""Find the strength of an allocation at which a model costs what it may."""

from collections.abc import Callable
from functools import partial

from bevel.errors import BudgetMissed
from bevel.passes.allocation.problem import Allocate, Widths

HALVINGS = 20
"""Of the range of strengths: one entry in a million."""

MOST_ROUNDS = 4
CLOSE = 0.995
"""Of a limit: what comes so close to it is taken."""


def fit(allocate: Allocate, figure: Callable[[Widths], float], limit: float, what: str) -> Widths:
    """Return the widest widths that an allocation gives and that cost `limit` at most.

    Bisects on the strength. Groups that one entry more would take over the limit (few, wide heads) stay as they are,
    and the others take what is left. Raises `BudgetMissed` if even the least widths cost more.
    """
    wide, narrow = allocate(0.0), allocate(1.0)
    if figure(wide) <= limit:
        return wide
    least = figure(narrow)
    if least > limit:
        raise BudgetMissed(
            f"cannot be reached: at the least widths it is {least / figure(wide):.3g}x of what it is now",
            where=f"target {what}",
            remedy="ask for less, allow smaller min-width and round-to, or leave fewer groups alone",
        )
    strength, stuck = 1.0, Widths()
    for _ in range(MOST_ROUNDS):
        strength, narrow, wide = bisect(partial(_with, allocate, stuck), figure, limit, strength)
        narrow = filled(narrow, wide, figure, limit)
        stuck |= {name: width for name, width in narrow.items() if width < wide[name]}
        if strength == 0 or figure(narrow) > CLOSE * limit:
            break
    return narrow


def bisect(
    allocate: Allocate, figure: Callable[[Widths], float], limit: float, strength: float
) -> tuple[float, Widths, Widths]:
    """Return the least strength, at most `strength`, that stays within the limit, its widths, and the next wider."""
    if figure(wide := allocate(0.0)) <= limit:
        return 0.0, wide, wide
    low, high = 0.0, strength
    narrow = allocate(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        widths = allocate(middle)
        if (found := figure(widths)) > limit:
            low, wide = middle, widths
            continue
        high, narrow = middle, widths
        if found > CLOSE * limit:
            break
    return high, narrow, wide


def _with(allocate: Allocate, stuck: Widths, strength: float) -> Widths:
    return allocate(strength) | stuck


def filled(narrow: Widths, wide: Widths, figure: Callable[[Widths], float], limit: float) -> Widths:
    """Widen one group after the other where that stays within the limit.

    >>> filled({"a": 1, "b": 1}, {"a": 3, "b": 2}, lambda widths: sum(widths.values()), 3)
    {'a': 1, 'b': 2}
    """
    for name, width in wide.items():
        wider = narrow | {name: width}
        if width > narrow[name] and figure(wider) <= limit:
            narrow = wider
    return narrow
