"""What a block format costs, and how much of it depends on which channels share a block: arrays in, numbers out."""

from typing import Any

import numpy as np

from bevel.passes.formats import Format

Array = np.ndarray[Any, Any]


def rounding(fmt: Format, block: int, array: Array, places: Array) -> Array:
    """Return by how much an array `[..., n]` changes when it is quantized in blocks of its entries in another order.

    The change stands where the array has its entries now.
    """
    ordered = array[..., places].astype(np.float32)
    change = np.empty(array.shape)
    change[..., places] = fmt.round_trip(ordered, ordered.ndim - 1, block) - ordered
    return change


def output_error(fmt: Format, block: int, weight: Array, second: Array | None, places: Array) -> float:
    """Return the squared error of a layer's output over its energy: `trace(E H E^T) / trace(W H W^T)`.

    The weight is `[groups, out, in]`, H `[groups, in, in]` the second moment of its input; without it, inputs count as
    white noise.
    """
    return _energy(rounding(fmt, block, weight, places), second) / max(_energy(weight, second), _SMALLEST)


_SMALLEST = 1e-30


def vector_error(fmt: Format, block: int, vectors: Array, places: Array) -> float:
    """Return the squared error of vectors `[vectors, heads, width]` over their energy; blocks end with a head.

    `places` are `[heads, width]`.
    """
    noise = sum(
        float(np.square(rounding(fmt, block, vectors[:, head], order)).sum()) for head, order in enumerate(places)
    )
    return noise / max(float(np.square(vectors, dtype=np.float64).sum()), _SMALLEST)


def _energy(rows: Array, second: Array | None) -> float:
    if second is None:
        return float(np.square(rows, dtype=np.float64).sum())
    return float(sum(np.einsum("oi,oi->", part @ moment, part) for part, moment in zip(rows, second, strict=True)))
