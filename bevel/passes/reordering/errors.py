"""What a block format costs, and how much of it depends on which channels share a block: arrays in, numbers out."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from bevel.passes.formats import Format

Array = np.ndarray[Any, Any]

SMALLEST: Final = 1e-30  # what the error of nothing is divided by


def rounding(fmt: Format, block: int, array: Array, places: Array) -> Array:
    """Return by how much an array `[..., n]` changes when it is quantized in blocks of its entries in another order.

    The change stands where the array has its entries now.
    """
    ordered = array[..., places].astype(np.float32)
    change = np.empty(array.shape, np.float32)
    change[..., places] = fmt.round_trip(ordered, ordered.ndim - 1, block) - ordered
    return change


def output_errors(
    fmt: Format, block: int, weight: Array, second: Array | None, orders: Iterable[Array]
) -> Iterator[float]:
    """Yield the squared error of a layer's output over its energy, `trace(E H E^T) / trace(W H W^T)`, for each order.

    The weight is `[groups, out, in]`, H `[groups, in, in]` the second moment of its input; without it, inputs count as
    white noise.
    """
    weight, second = weight.astype(np.float32), None if second is None else second.astype(np.float32)
    whole = max(_energy(weight, second), SMALLEST)
    for places in orders:
        yield _energy(rounding(fmt, block, weight, places), second) / whole


def vector_error(fmt: Format, block: int, vectors: Array, places: Array) -> float:
    """Return the squared error of vectors `[vectors, heads, width]` over their energy; blocks end with a head.

    `places` are `[heads, width]`.
    """
    noise = sum(
        float(np.square(rounding(fmt, block, vectors[:, head], order)).sum()) for head, order in enumerate(places)
    )
    return noise / max(float(np.square(vectors, dtype=np.float64).sum()), SMALLEST)


def _energy(rows: Array, second: Array | None) -> float:
    if second is None:
        return float(np.square(rows, dtype=np.float64).sum())
    return float(sum(((part @ moment) * part).sum(dtype=np.float64) for part, moment in zip(rows, second, strict=True)))
