"""What a few codes cannot say of a weight, as the product of two thin matrices beside them.

`lorc` quantizes a weight, and keeps the directions in which the error is largest. `svdquant` takes the directions in
which the *weight* is largest out first, so that what is left has no outliers, and quantizes that. Both are the same two
steps, taken once or as often as they help:

    Q = quantized(W - L)        L = the best of rank r for W - Q

from `L = 0`, or from the best `L` for `W`. With the second moment of what a layer reads, best means for its output.
Factors are rounded to half precision.

Source: Yao et al. 2023, ZeroQuant-V2 (LoRC); Li et al. 2024, SVDQuant (here of weights alone, without its smoothing).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from bevel.passes.factoring.leading import leading_factors
from bevel.passes.fitting.second_order import Damped
from bevel.passes.formats import Quantized

Array = np.ndarray[Any, Any]
Quantize: TypeAlias = Callable[[Array], Quantized]
Kind: TypeAlias = Literal["lorc", "svdquant"]

# How often codes and factors are fitted to each other at most, and what share of the error another time has to gain.
TIMES: Final = 10
GAIN: Final = 1e-3
HALF_MAX: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class Repaired(Quantized):
    """A quantized matrix and the thin ones beside it: `down` `[in, rank]` times `up` `[rank, out]`."""

    down: Array
    up: Array
    in_axis: int

    def decode(self) -> Array:
        """Return what the codes stand for, and what is beside them."""
        low = self.down @ self.up
        whole: Array = super().decode() + (low.T if self.in_axis else low)
        return whole


@dataclass(frozen=True)
class Member:
    """A matrix that shares `down` with others, its axis of inputs, and what quantizes it.

    `quantize` is quick, for it is asked often. `finish` is asked last, if it is another.
    """

    matrix: Array
    in_axis: int
    quantize: Quantize
    finish: Quantize | None = None

    def turned(self, array: Array) -> Array:
        """Return a matrix as `[in, out]`, or one that is that as it is stored."""
        return array.T if self.in_axis else array


def repaired(members: Sequence[Member], kind: Kind, rank: int, second: Array | None = None) -> list[Repaired]:
    """Return matrices that read the same, in their formats, with one `down` for all of them.

    `second` `[in, in]` is the second moment of what they read; without it, the error of the weights counts.
    """
    search = _Search(members, rank, None if second is None else Damped(second).root.astype(np.float32))
    state = search.step(None, last=True) if kind == "lorc" else search.alternating()
    ups = search.cut(state.up)
    return [
        Repaired(**vars(codes), down=state.down, up=up, in_axis=member.in_axis)
        for member, codes, up in zip(members, state.codes, ups, strict=True)
    ]


@dataclass(frozen=True)
class _State:
    """Codes of the members, the factors that go with them, and the error of both."""

    codes: Sequence[Quantized]
    down: Array
    up: Array
    lost: float


class _Search:
    def __init__(self, members: Sequence[Member], rank: int, root: Array | None) -> None:
        self.members, self.rank, self.root = members, rank, root
        self.weights = np.concatenate([member.turned(member.matrix) for member in members], axis=1)

    def alternating(self) -> _State:
        """Return codes and factors that were fitted to each other as often as it helped, factors first."""
        start, lost = self.factors(self.weights), inf
        for _ in range(TIMES):
            state = self.step(start, last=False)
            if state.lost >= lost * (1 - GAIN):
                break
            best, begin, lost = state, start, state.lost
            start = state.down, state.up
        return best if all(member.finish is None for member in self.members) else self.step(begin, last=True)

    def factors(self, rest: Array) -> tuple[Array, Array]:
        """Return the best factors, in half precision; what is beyond that becomes the largest number it has."""
        down, up = (
            np.clip(each, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)
            for each in leading_factors(rest, self.rank, self.root)
        )
        return down, up

    def step(self, factors: tuple[Array, Array] | None, last: bool) -> _State:
        """Return codes of what factors leave, and the factors of what those codes leave."""
        residual = self.weights if factors is None else self.weights - factors[0] @ factors[1]
        codes = []
        for member, part in zip(self.members, self.cut(residual), strict=True):
            quantize = (member.finish if last else None) or member.quantize
            codes.append(quantize(np.ascontiguousarray(member.turned(part))))
        known = [member.turned(each.decode()) for member, each in zip(self.members, codes, strict=True)]
        rest = self.weights - np.concatenate(known, axis=1)
        down, up = self.factors(rest)
        rest -= down @ up
        return _State(codes, down, up, float(np.linalg.norm(rest if self.root is None else self.root.T @ rest)))

    def cut(self, array: Array) -> list[Array]:
        """Return the part of each member, of what has a column for each output."""
        sizes = [member.turned(member.matrix).shape[1] for member in self.members]
        return np.split(array, np.cumsum(sizes)[:-1], axis=1)
