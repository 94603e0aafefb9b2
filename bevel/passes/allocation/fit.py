"""Find the strength of an allocation at which a model costs what it may."""

from collections.abc import Callable

from bevel.errors import BudgetMissed
from bevel.passes.allocation.problem import Allocate, Widths

HALVINGS = 20
"""Of the range of strengths: one entry in a million."""


def fit(allocate: Allocate, figure: Callable[[Widths], float], limit: float, what: str) -> Widths:
    """Return the widest widths that an allocation gives and that cost `limit` at most.

    Bisects on the strength; then, of the groups that would be wider at a little less strength, those that still fit
    become so. Raises `BudgetMissed` if even the least widths cost more.
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
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        widths = allocate(middle)
        if figure(widths) <= limit:
            high, narrow = middle, widths
        else:
            low, wide = middle, widths
    return filled(narrow, wide, figure, limit)


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
