"""Which entries are trained: a share of all that there are, pooled over the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from bevel.selection.units import Unit

Array = np.ndarray[Any, Any]
End: TypeAlias = Literal["largest", "smallest"]
Take: TypeAlias = Callable[[Sequence[Unit], float], list[Array]]
"""Takes a share of the entries of all units together, and returns those of each."""


def drawing(seed: int) -> Take:
    """Return what takes entries at random, others at every call."""
    generator = np.random.default_rng(seed)
    return lambda found, share: drawn([unit.group.size for unit in found], share, generator)


def ranking(scores: Mapping[str, Array], end: End) -> Take:
    """Return what takes those with the largest or smallest scores, given by the groups' names."""
    return lambda found, share: ranked([scores[unit.group.name] for unit in found], share, end)


def count(share: float, total: int) -> int:
    """Return how many of `total` entries a share is: at least one, unless it is nothing.

    >>> count(0.03, 2048), count(0.03, 8), count(0.0, 8)
    (61, 1, 0)
    """
    return max(1, round(share * total)) if share and total else 0


def drawn(sizes: Sequence[int], share: float, generator: np.random.Generator) -> list[Array]:
    """Draw a share of all entries of several groups; return those of each group, in order."""
    total = sum(sizes)
    return split(generator.permutation(total)[: count(share, total)], sizes)


def ranked(scores: Sequence[Array], share: float, end: End) -> list[Array]:
    """Take the share of all entries with the largest or smallest scores; return those of each group, in order.

    >>> ranked([np.array([3.0, 1.0]), np.array([2.0, 9.0])], 0.5, "largest")
    [array([0]), array([1])]
    """
    joined = np.concatenate([np.empty(0), *scores])
    order = np.argsort(-joined if end == "largest" else joined, kind="stable")
    return split(order[: count(share, len(joined))], [len(each) for each in scores])


def split(entries: Array, sizes: Sequence[int]) -> list[Array]:
    """Hand entries that are counted through all groups to the groups they are of.

    >>> split(np.array([4, 0]), [3, 2])
    [array([0]), array([1])]
    """
    starts = np.cumsum([0, *sizes])
    return [np.sort(entries[(entries >= start) & (entries < stop)] - start) for start, stop in pairwise(starts)]
