"""The arithmetic of sparse deltas: what fine-tuning added to a weight, thinned out at random and rescaled.

Of a delta `D`, each entry stays with probability `1 - p` and is divided by `q`. A layer's output then differs from the
tuned one's by `sum_j (1 - kept_j / q) D_j x_j`; over the draws and the inputs, with `H = E[x x^T]`,

    E |difference|^2 = (1 - (1 - p) / q)^2 A + p (1 - p) / q^2 B,    A = tr(D H D^T),    B = sum_ij D_ij^2 H_jj

`A` is what the entries do together, `B` what they would do one by one. DARE's `q = 1 - p` makes the first term, the
bias, zero; for a layer alone the sum is least at `q = (1 - p) + p B / A`. In a network of `L` layers the biases all
point the same way and add up, while the rest is independent from layer to layer and adds up in power only: with the
first term weighing `L` times as much, `q = (1 - p) + p B / (L A)`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import log2, prod
from typing import Any, Final
from zlib import crc32

import numpy as np
import onnx_ir as ir

from bevel.ir.content import content

Array = np.ndarray[Any, Any]

# Entries worked on at once, in double precision: 32 MB an array.
CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class Tuned:
    """A tuned tensor, the `q` its delta is divided by, and what seeds its draws."""

    tensor: ir.TensorProtocol
    q: float
    seed: tuple[int, ...]


def seed_of(name: str, *numbers: int) -> tuple[int, ...]:
    """Return a seed of a tensor's own: it depends on its name, not on its place among others."""
    return (*numbers, crc32(name.encode()))


def merged(base: ir.TensorProtocol, tuned: Sequence[Tuned], drop: float, scale: float, dtype: ir.DataType) -> Array:
    """Return `base + scale * sum of (kept share of each delta) / q`, in double precision and rounded once."""
    with ExitStack() as stack:
        start = np.atleast_1d(stack.enter_context(content(base)))
        parts = [_Part(np.atleast_1d(stack.enter_context(content(each.tensor))), each) for each in tuned]
        result = np.empty(start.shape, dtype.numpy())
        for rows in _chunks(start.shape):
            wide = start[rows].astype(np.float64)
            result[rows] = wide + scale * sum(part.thinned(rows, wide, drop) for part in parts)
    return result.reshape(base.shape.numpy())


class _Part:
    """A tuned array that is read from its first row on, and its draws."""

    def __init__(self, array: Array, tuned: Tuned) -> None:
        self.array = array
        self.q = tuned.q
        self.draws = np.random.default_rng(tuned.seed)

    def thinned(self, rows: slice, base: Array, drop: float) -> Array:
        delta = self.array[rows].astype(np.float64) - base
        if drop:
            delta *= self.draws.random(delta.shape, np.float32) >= drop
        return delta / self.q


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(CHUNK // max(prod(shape[1:]), 1), 1)
    return (slice(start, start + step) for start in range(0, shape[0], step))


def best_q(together: float, apart: float, drop: float, layers: int = 1) -> float:
    """Return the `q` of the least expected output error, from `A`, `B` and `L` above; between DARE's and 1.

    >>> best_q(together=1.0, apart=1.0, drop=0.9), round(best_q(together=1.0, apart=0.0, drop=0.9), 2)
    (1.0, 0.1)
    """
    share = min(apart / (layers * together), 1.0) if together > 0 else 1.0
    return (1 - drop) + drop * share


def bits(drop: float, width: int) -> float:
    """Return how many bits an entry of a thinned delta takes: where the kept ones are, and their values.

    >>> bits(0.5, 32)
    17.0
    """
    places = -sum(share * log2(share) for share in (drop, 1 - drop) if share)
    return places + (1 - drop) * width
