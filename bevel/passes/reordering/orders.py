"""Orders of channels: by score, with blocks in mind, or with chosen ones in front.

An order lists entries: entry `i` of the result is what was entry `order[i]`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np

Array = np.ndarray[Any, Any]
Arrangement: TypeAlias = Literal["descending", "dealt", "grouped"]


def contiguous(size: int, first: Sequence[int] | Array, second: Sequence[int] | Array = ()) -> Array:
    """Return an order in which two sets of entries are a range each: only in `first`, both, only in `second`, the rest.

    Each part keeps the order that it had. Source: Yang et al. 2024, S2FT.

    >>> contiguous(6, [4, 1], [1, 3])
    array([4, 1, 3, 0, 2, 5])
    """
    places = np.arange(size)
    one, other = np.isin(places, first), np.isin(places, second)
    return np.concatenate([places[part] for part in (one & ~other, one & other, ~one & other, ~one & ~other)])


def descending(scores: Array, block: int = 0) -> Array:
    """Return the order with the largest scores in front; neighbours are of one size, and so are blocks.

    >>> descending(np.array([1.0, 3.0, 2.0]))
    array([1, 2, 0])
    """
    return np.argsort(-scores, kind="stable")


def dealt(scores: Array, block: int) -> Array:
    """Deal entries to the blocks in turns, the largest first, so that every block has its share of large ones.

    >>> dealt(np.array([9.0, 8.0, 7.0, 6.0, 5.0]), 2)
    array([0, 3, 1, 4, 2])
    """
    order, blocks = descending(scores), -(-len(scores) // block)
    return np.concatenate([order[start::blocks] for start in range(blocks)])


def grouped(scores: Array, block: int) -> Array:
    """Let entries of one size share a block, and move no more than that: a block keeps its entries in their old order.

    >>> grouped(np.array([1.0, 7.0, 2.0, 9.0]), 2)
    array([1, 3, 0, 2])
    """
    order = descending(scores)
    return np.concatenate([np.sort(order[start : start + block]) for start in range(0, len(order), block)])


ARRANGEMENTS: Final[Mapping[Arrangement, Callable[[Array, int], Array]]] = {
    "descending": descending,
    "dealt": dealt,
    "grouped": grouped,
}


def arranged(scores: Array, arrangement: Arrangement, block: int) -> Array:
    """Return an order for each row of scores: `[rows, size]` in, `[rows, size]` out.

    >>> arranged(np.array([[1.0, 2.0], [2.0, 1.0]]), "descending", 2).tolist()
    [[1, 0], [0, 1]]
    """
    return np.stack([ARRANGEMENTS[arrangement](row, block) for row in scores])
