"""How far values are from those that they are compared with: numbers of every type, strings, sequences, maps.

The error of an output is `max |result - reference| / max |reference|`, both maxima over all inputs: relative to the
output's own magnitude, so that a value near zero does not decide it. Where values are exact to so much only, whatever
their size, an error is what is beyond that.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

FAINT: Final = 100.0
"""What is at most so many times as large as what differences mean nothing shows no error of a percent."""


@dataclass(frozen=True)
class Deviation:
    """How far one output is from its reference, over all feeds.

    `absolute` and `relative` are maxima, `sqnr` is in dB, `cosine` is of all values taken as one vector. Values that
    cannot be subtracted (strings, absent optionals, other shapes) are equal or infinitely apart. `epsilon` is the
    rounding unit of the output's type, or of a coarser one that the model computes in. `note` says why there is no
    number, or that the reference is constant, so that hardly any error could show.
    """

    output: str
    exact: bool
    absolute: float
    relative: float
    sqnr: float
    cosine: float
    epsilon: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        words = "identical" if self.exact else f"error {self.relative:.2g} (SQNR {self.sqnr:.0f} dB)"
        return f"{self.output}: {words}" + (f"; {self.note}" if self.note else "")


def deviate(output: str, reference: Sequence[Any], result: Sequence[Any], resolution: float = 0.0) -> Deviation:
    """Measure how far `result` is from `reference`: the values of one output, one per feed.

    Differences of up to `resolution` are no error.
    """
    pairs: list[tuple[Array, Array]] = []
    for expected, got in zip(reference, result, strict=True):
        if (clash := _clash(expected, got)) is not None:
            return incomparable(output, clash)
        pairs += zip(_arrays(expected), _arrays(got), strict=True)
    exact = all(identical(expected, got) for expected, got in pairs)
    note = _degenerate(pairs, resolution)
    if any(expected.dtype.kind in "OUST" for expected, _ in pairs):
        return Deviation(output, exact, *((0.0, 0.0, math.inf, 1.0) if exact else APART), note=note)
    return Deviation(output, exact, *_measure(pairs, resolution), _epsilon(pairs), note)


# absolute, relative, SQNR, cosine of values that cannot be compared as numbers
APART = (math.inf, math.inf, -math.inf, 0.0)


def incomparable(output: str, why: str) -> Deviation:
    """Say that an output cannot be compared, and why: it is infinitely apart."""
    return Deviation(output, False, *APART, note=why)


def _clash(expected: Any, got: Any) -> str | None:
    """Say why two values cannot be compared element by element, None if they can."""
    if (expected is None) != (got is None):
        return "absent on one side"
    left, right = list(_arrays(expected)), list(_arrays(got))
    if len(left) != len(right):
        return f"{len(right)} items against {len(left)}"
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return f"shape {list(b.shape)}, not {list(a.shape)}"
        if a.dtype != b.dtype and not (a.dtype.kind in "OUST" and b.dtype.kind in "OUST"):
            return f"type {b.dtype}, not {a.dtype}"
    return None


def _arrays(value: Any) -> Iterator[Array]:
    """Yield the arrays in an output: itself, the items of a sequence, the values of a map, nothing for None."""
    if isinstance(value, Mapping):
        yield np.array(list(value.keys()))
        yield np.array(list(value.values()))
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(map(_arrays, value))
    elif value is not None:
        yield np.asarray(value)


def identical(expected: Any, got: Any) -> bool:
    """Say whether two values are the same in every element; NaN equals NaN, and -0 equals 0."""
    if _clash(expected, got) is not None:
        return False
    return all(_same_bits(a, b) for a, b in zip(_arrays(expected), _arrays(got), strict=True))


def _same_bits(a: Array, b: Array) -> bool:
    if a.dtype.kind in "OUST":
        return bool(np.array_equal(a, b))
    return a.tobytes() == b.tobytes() or (_floating(a) and bool(np.array_equal(_wide(a), _wide(b), equal_nan=True)))


def _measure(pairs: Sequence[tuple[Array, Array]], resolution: float) -> tuple[float, float, float, float]:
    """Return absolute error, relative error, SQNR in dB and cosine over all pairs.

    NaN and infinities count as equal where both sides have the same one, as an infinite error where they do not.
    """
    worst = largest = noise = energy = other = product = 0.0
    for a, b in ((_wide(expected), _wide(got)) for expected, got in pairs):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & np.isfinite(b)
        if not np.all(finite | same):
            return APART
        a, b = a[finite], b[finite]
        difference = np.abs(a - b)
        worst, largest = max(worst, _top(difference)), max(largest, _top(np.abs(a)))
        noise, energy, other = noise + _square(difference), energy + _square(np.abs(a)), other + _square(np.abs(b))
        product += float(np.real(np.vdot(a, b)))
    relative = 0.0 if worst <= resolution else (worst - resolution) / largest if largest else math.inf
    return worst, relative, _decibel(energy, noise), _cosine(product, energy, other)


def _decibel(energy: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(energy / noise) if energy else -math.inf


def _cosine(product: float, energy: float, other: float) -> float:
    norm = math.sqrt(energy) * math.sqrt(other)
    return min(product / norm, 1.0) if norm else float(energy == other)


def _degenerate(pairs: Sequence[tuple[Array, Array]], resolution: float) -> str:
    """Say if hardly any error could show in the reference: empty, nowhere finite, one value or rounding throughout."""
    arrays = [expected.ravel() for expected, _ in pairs if expected.size]
    if not arrays:
        return "empty, so there was nothing to compare"
    if all(_floating(array) and not np.isfinite(_wide(array)).any() for array in arrays):
        return "the reference is nowhere finite, so the check is weak"
    first = arrays[0][:1]
    if sum(array.size for array in arrays) > 1 and all(np.all(array == first) for array in arrays):
        return f"the reference is {first[0]} throughout, so the check is weak"
    if resolution and (largest := max(_top(np.abs(_wide(array))) for array in arrays)) <= FAINT * resolution:
        return f"the reference is at most {largest:.2g}, so the check is weak"
    return ""


def _epsilon(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Return the rounding unit of an output's own floating-point type, 0 for other types."""
    kinds = {expected.dtype for expected, _ in pairs if _floating(expected) and expected.dtype.kind != "c"}
    finfo: Any = ml_dtypes.finfo
    return max((float(finfo(kind).eps) for kind in kinds), default=0.0)


def _floating(array: Array) -> bool:
    """Return whether an array holds floating-point numbers; numpy calls bfloat16 and float8 "void" (kind V)."""
    return array.dtype.kind in "fcV"


def _wide(array: Array) -> Array:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _top(magnitudes: Array) -> float:
    return float(magnitudes.max(initial=0.0))


def _square(magnitudes: Array) -> float:
    return float(np.vdot(magnitudes, magnitudes))
