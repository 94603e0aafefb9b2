"""Cut an array into blocks of consecutive entries along an axis, and put it together again.

The blocks of an array are `[outer, blocks, block, inner]`: what stands before the axis, the blocks, the entries of one,
and what stands after the axis. Entries of a block are along axis -2, so that whatever is done to all blocks is done to
long rows where the axis is not the last.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import ceil, isqrt, prod
from typing import Any, Final, Literal, TypeAlias, TypeVar

import numpy as np

from bevel.errors import UsageError

Array = np.ndarray[Any, Any]
Axis: TypeAlias = int | Literal["both"] | None
"""What blocks run along: an axis, the array as one row, or both axes of a matrix, whose blocks are tiles then."""
Part: TypeAlias = tuple[slice, slice, slice, slice]
Item = TypeVar("Item")

MATRIX: Final = 2
"""How many axes what has tiles has."""

ENTRIES: Final = -2
"""The axis of a block's entries."""

# Elements handled at once: with their temporaries they stay in the second-level cache.
PART: Final = 1 << 17
# Below so many elements, threads cost more than they save.
WORTH_THREADS: Final = 1 << 21
THREADS: Final = min(4, os.cpu_count() or 1)


def split(array: Array, axis: Axis, block: int) -> Array:
    """Return the blocks of an array; the last is filled up with zeros, and copied only if it has to be.

    No axis means the array as one row, block 0 the whole axis. Tiles have a side of `block`, and are in rows.

    >>> split(np.arange(6.0).reshape(2, 3), 1, 2)[1, :, :, 0].tolist()
    [[3.0, 4.0], [5.0, 0.0]]
    >>> split(np.arange(6.0).reshape(2, 3), "both", 2)[0, :, :, 0].tolist()
    [[0.0, 1.0, 3.0, 4.0], [2.0, 0.0, 5.0, 0.0]]
    """
    if axis == "both":
        return _tiles(array, block)
    outer, count, inner = extents(array.shape, axis)
    size = block_size(count, block)
    rows = array.reshape(outer, count, inner)
    if missing := -count % size:
        rows = np.pad(rows, ((0, 0), (0, missing), (0, 0)))
    return rows.reshape(outer, -1, size, inner)


def _tiles(array: Array, block: int) -> Array:
    high, wide = tile(array.shape, block)
    rows = np.pad(array, [(0, -array.shape[0] % high), (0, -array.shape[1] % wide)])
    tiles = rows.reshape(rows.shape[0] // high, high, -1, wide).transpose(0, 2, 1, 3)
    return tiles.reshape(*tiles.shape[:2], high * wide, 1)


def long_rows(blocks: Array) -> Array:
    """Return blocks along the last axis of an array as `[1, 1, block, outer * blocks]`, others as they are: a view.

    What is done to all entries of a block is then done to long rows. Blocks must be in the order of memory.
    """
    outer, count, size, inner = blocks.shape
    return blocks if inner > 1 else blocks.reshape(outer * count, size).T[None, None]


def join(blocks: Array, shape: tuple[int, ...], axis: Axis) -> Array:
    """Return the array of some shape that has these blocks; the way back of `split`.

    >>> join(split(np.arange(6.0), 0, 4), (6,), 0).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if axis == "both":
        high, wide = _tile_of(blocks.shape, shape)
        tiles = blocks.reshape(*blocks.shape[:2], high, wide).transpose(0, 2, 1, 3)
        return tiles.reshape(blocks.shape[0] * high, -1)[: shape[0], : shape[1]]
    outer, count, inner = extents(shape, axis)
    return blocks.reshape(outer, -1, inner)[:, :count].reshape(shape)


def _tile_of(blocks: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the height and width of tiles: square, but where one of them reaches across the matrix."""
    if blocks[0] == 1:
        return shape[0], blocks[2] // max(shape[0], 1)
    return (blocks[2] // shape[1], shape[1]) if blocks[1] == 1 else (isqrt(blocks[2]), isqrt(blocks[2]))


def tile(shape: tuple[int, ...], block: int) -> tuple[int, int]:
    """Return the height and width of the tiles of a matrix."""
    if len(shape) != MATRIX:
        raise UsageError(f"an array of shape {shape} has no tiles", remedy="a matrix has")
    return block_size(shape[0], block), block_size(shape[1], block)


def arrangement(shape: tuple[int, ...], axis: Axis, block: int) -> tuple[int, int, int, int]:
    """Return the shape of the blocks of an array.

    >>> arrangement((5, 7), 1, 4), arrangement((5, 7), "both", 4)
    ((5, 2, 4, 1), (2, 2, 16, 1))
    """
    if axis == "both":
        high, wide = tile(shape, block)
        return -(-shape[0] // high), -(-shape[1] // wide), high * wide, 1
    outer, count, inner = extents(shape, axis)
    size = block_size(count, block)
    return outer, -(-count // size), size, inner


def extents(shape: tuple[int, ...], axis: int | None) -> tuple[int, int, int]:
    """Return the sizes before an axis, along it and after it."""
    if axis is None:
        return 1, prod(shape), 1
    if not -len(shape) <= axis < len(shape):
        raise UsageError(f"there is no axis {axis} in an array of shape {shape}")
    axis %= len(shape)
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def block_size(count: int, block: int) -> int:
    """Return how many entries a block has along an axis of `count`; refuse a negative number."""
    if block < 0:
        raise UsageError(f"a block cannot have {block} entries", remedy="0 stands for the whole axis")
    return max(min(block or count, count), 1)


def parts(shape: tuple[int, ...]) -> Iterator[Part]:
    """Yield slices that together cover an array of blocks; each takes whole blocks, and about `PART` elements."""
    outer, blocks, block, inner = shape
    wide = min(inner, max(PART // max(block, 1), 1)) or 1
    many = min(blocks, max(PART // max(block * wide, 1), 1)) or 1
    deep = min(outer, max(PART // max(block * wide * many, 1), 1)) or 1
    for i, j, k in product(range(ceil(outer / deep)), range(ceil(blocks / many)), range(ceil(inner / wide))):
        yield slice(i * deep, (i + 1) * deep), slice(j * many, (j + 1) * many), slice(None), _run(k, wide)


def each_part(shape: tuple[int, ...], work: Callable[[Part], None], times: int = 1) -> None:
    """Do some work on every part of an array of blocks; side by side where there are many.

    `times` says how often the work goes through all elements.
    """
    each(parts(shape), work, prod(shape) * times)


def each(items: Iterable[Item], work: Callable[[Item], None], many: int) -> None:
    """Do some work on every item; on several threads where so many elements pay for them.

    NumPy lets threads run side by side.
    """
    if many < WORTH_THREADS:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(work, items):
            pass


def finite(array: Array) -> bool:
    """Say whether all entries are finite numbers.

    >>> finite(np.ones(3)), finite(np.array([1.0, np.nan]))
    (True, False)
    """
    flat, broken = array.reshape(-1), list[int]()

    def work(start: int) -> None:
        if not np.isfinite(flat[start : start + PART]).all():
            broken.append(start)

    each(range(0, flat.size, PART), work, flat.size)
    return not broken


def _run(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
