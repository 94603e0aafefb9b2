"""Which entries of a group stay, given how many."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

Keeps: TypeAlias = dict[str, np.ndarray]
"""The entries that stay, in their old order, of every group that loses some."""


def best(scores: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> Keeps:
    """Keep the entries with the highest scores; of equal ones the first.

    >>> best({"a": np.array([1.0, 3.0, 2.0]), "b": np.array([1.0])}, {"a": 2, "b": 1})
    {'a': array([1, 2])}
    """
    return {
        name: np.sort(np.argsort(-values, kind="stable")[: widths[name]])
        for name, values in scores.items()
        if widths[name] < len(values)
    }


def composed(first: Keeps, then: Keeps) -> Keeps:
    """Return what two cuts, one after the other, leave of what was there before the first.

    >>> composed({"a": np.array([1, 4, 5])}, {"a": np.array([0, 2]), "b": np.array([0])})
    {'a': array([1, 5]), 'b': array([0])}
    """
    return first | {name: first[name][keep] if name in first else keep for name, keep in then.items()}
