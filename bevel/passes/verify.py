"""Translation validation: run two models on the same inputs and say how far apart they are.

The error of an output is `max |result - reference| / max |reference|`, both maxima over all inputs: relative to the
output's own magnitude, so that a value near zero does not decide it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bevel.backends.onnxruntime import Level, Session
from bevel.errors import CalibrationError, PromiseBroken, UnsupportedModel
from bevel.passes.base import Exact, Lossy, Masked, Preserving, Promise
from bevel.passes.rounding import leave_out_rounding, unit

Array = np.ndarray[Any, Any]

# Half-precision kernels compute in float32 and round at every node; two such roundings on each side differ by 4 units.
ROUNDINGS = 4
# Rounding to a quantization step moves a value by half a step at most, a rounding that falls the other way by a whole.
FLIP = 2


@dataclass(frozen=True)
class Observation:
    """What a model answered: one mapping of outputs per feed; `stable` is False if a second run answered otherwise."""

    answers: tuple[Mapping[str, Any], ...]
    stable: bool = True


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


@dataclass(frozen=True)
class Unrounded:
    """The comparison repeated with the rounding of quantized activations left out of both models.

    `outputs` are its deviations, `noise` is by output what that rounding does to the reference.
    """

    activations: int
    outputs: Mapping[str, Deviation]
    noise: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """Whether a promise was kept, with the evidence. `max_error` is the user's limit, for lossy passes.

    `unrounded` is there if quantized activations are rounded and the plain comparison failed. It decides then: without
    the rounding the promise must hold as it stands, and with it no error may be larger than flipped roundings make.
    """

    promise: Promise
    outputs: tuple[Deviation, ...]
    feeds: int
    max_error: float | None = None
    unrounded: Unrounded | None = None

    @property
    def error(self) -> float:
        """Return the largest relative error of any output."""
        return max((deviation.relative for deviation in self.outputs), default=0.0)

    @property
    def broken(self) -> tuple[Deviation, ...]:
        """Return the outputs on which the promise was not kept."""
        return tuple(deviation for deviation in self.outputs if not self._kept(deviation))

    @property
    def kept(self) -> bool:
        """Return whether every output is as promised."""
        return not self.broken

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what weakens the evidence: outputs on which the check could not have failed, or has rounding in it."""
        weak = (f"output {deviation.output}: {deviation.note}" for deviation in self.outputs if deviation.note)
        return (*weak, *self.roundings)

    @property
    def roundings(self) -> tuple[str, ...]:
        """Return on which outputs the promise was kept only but for rounding, and by how much."""
        coarse = (self._coarse(deviation) for deviation in self.outputs if self._kept_coarsely(deviation))
        flipped = (self._flipped(deviation) for deviation in self.outputs if self._kept_unrounded(deviation))
        return (*coarse, *flipped)

    def limit(self, deviation: Deviation) -> float:
        """Return the relative error allowed on one output: the promise's, or a few roundings of the coarsest type."""
        if self.promise.rtol is None:
            return math.inf if self.max_error is None else self.max_error
        return max(self.promise.rtol, ROUNDINGS * deviation.epsilon)

    def _kept(self, deviation: Deviation) -> bool:
        if isinstance(self.promise, Exact):
            return deviation.exact
        if isinstance(self.promise, Lossy) and self.max_error is None:
            return not math.isnan(deviation.relative)
        return deviation.exact or deviation.relative <= self.limit(deviation) or self._kept_unrounded(deviation)

    def _kept_coarsely(self, deviation: Deviation) -> bool:
        """Tell whether an output is over the promise's own limit, but within a few roundings of a half precision."""
        return (self.promise.rtol or math.inf) < deviation.relative <= ROUNDINGS * deviation.epsilon

    def _coarse(self, deviation: Deviation) -> str:
        return (
            f"output {deviation.output}: error {deviation.relative:.2g}, for it is computed in half precision; up to "
            f"{self.limit(deviation):.2g} is rounding"
        )

    def _kept_unrounded(self, deviation: Deviation) -> bool:
        """Tell whether an output is over the limit by flipped roundings and nothing else."""
        if self.unrounded is None or deviation.relative <= self.limit(deviation):
            return False
        smooth = self.unrounded.outputs[deviation.output]
        return smooth.relative <= self.limit(smooth) and deviation.relative <= FLIP * self._noise(deviation)

    def _noise(self, deviation: Deviation) -> float:
        return 0.0 if self.unrounded is None else self.unrounded.noise[deviation.output]

    def _flipped(self, deviation: Deviation) -> str:
        assert self.unrounded is not None
        return (
            f"output {deviation.output}: error {deviation.relative:.2g} because sums in another order round some of "
            f"{self.unrounded.activations} quantized activations the other way (their rounding alone makes an error of "
            f"{self._noise(deviation):.2g}); without it the error is "
            f"{self.unrounded.outputs[deviation.output].relative:.2g}"
        )

    def demand(self, where: str, remedy: str = "") -> None:
        """Raise `PromiseBroken`, naming the worst output and its error, unless the promise was kept."""
        if self.kept:
            return
        worst = max(self.broken, key=lambda deviation: deviation.relative)
        limit = "0" if isinstance(self.promise, Exact) else f"{self.limit(worst):.2g}"
        raise PromiseBroken(
            f"promised {type(self.promise).__name__} (error at most {limit}), "
            f"but output {worst.output!r} has error {worst.relative:.3g}" + (f" ({worst.note})" if worst.note else ""),
            where=where,
            remedy=remedy,
        )


def verify(reference: ir.Model, result: ir.Model, feeds: Iterable[Mapping[str, Any]], promise: Promise) -> Verdict:
    """Run both models on `feeds` in ONNX Runtime and compare their outputs as `promise` asks.

    `feeds` is read once per model. Raises `UnsupportedModel` if a model does not run, or if the reference does not
    answer the same twice (random operators), and `CalibrationError` if there are no feeds.
    """
    with Session(reference, level=Level.AS_WRITTEN) as session:
        expected = observe(session, feeds, repeat=True)
    with Session(result, level=Level.AS_WRITTEN) as session:
        verdict = compare(expected, observe(session, feeds), promise, epsilon=unit(reference))
    return apart_from_rounding(verdict, expected, reference, result, feeds)


def apart_from_rounding(
    verdict: Verdict, expected: Observation, reference: ir.Model, result: ir.Model, feeds: Iterable[Mapping[str, Any]]
) -> Verdict:
    """Where reordered sums broke a promise, compare again without the rounding of quantized activations.

    `expected` is what `reference` answered. Gives the verdict back as it was if there is no such rounding.
    """
    if verdict.kept or not isinstance(verdict.promise, Preserving | Masked):
        return verdict
    smooth, smooth_result = reference.clone(), result.clone()
    count = leave_out_rounding(smooth)
    if not count or leave_out_rounding(smooth_result) != count:
        return verdict
    try:
        with Session(smooth, level=Level.AS_WRITTEN) as session:
            aimed = observe(session, feeds)
    except UnsupportedModel:  # clipping has fewer types than quantization
        return verdict
    with Session(smooth_result, level=Level.AS_WRITTEN) as session:
        outputs = compare(aimed, observe(session, feeds), verdict.promise, epsilon=unit(smooth)).outputs
    noise = {deviation.output: deviation.relative for deviation in compare(expected, aimed, Lossy()).outputs}
    return replace(verdict, unrounded=Unrounded(count, {found.output: found for found in outputs}, noise))


def observe(session: Session, feeds: Iterable[Mapping[str, Any]], *, repeat: bool = False) -> Observation:
    """Run a model on every feed. With `repeat`, run the first one twice, to see whether its answers are stable."""
    answers: list[Mapping[str, Any]] = []
    stable = True
    for feed in feeds:
        answers.append(session.run(feed))
        if repeat and len(answers) == 1:
            again = session.run(feed)
            stable = all(_identical(answers[0][name], again[name]) for name in again)
    return Observation(tuple(answers), stable)


def compare(
    reference: Observation,
    result: Observation,
    promise: Promise,
    *,
    max_error: float | None = None,
    epsilon: float = 0.0,
) -> Verdict:
    """Compare two observations of the same feeds; see `verify`. `epsilon` is the coarsest rounding unit inside."""
    if not reference.answers:
        raise CalibrationError("there are no inputs to verify with", remedy="zero inputs prove nothing")
    if not reference.stable:
        raise UnsupportedModel(
            "its answers change from run to run (random operators), so nothing can be verified",
            remedy="give the random operators a fixed result, or run with --no-verify",
        )
    if len(reference.answers) != len(result.answers):
        raise CalibrationError("the two models were run on different numbers of inputs")
    names = reference.answers[0].keys()
    outputs = (
        deviate(name, [answer[name] for answer in reference.answers], [answer.get(name) for answer in result.answers])
        for name in names
    )
    missing = [name for name in result.answers[0] if name not in names]
    extra = (_incomparable(name, "not an output of the reference") for name in missing)
    found = [replace(deviation, epsilon=max(deviation.epsilon, epsilon)) for deviation in (*outputs, *extra)]
    return Verdict(promise, tuple(found), len(reference.answers), max_error)


def deviate(output: str, reference: Sequence[Any], result: Sequence[Any]) -> Deviation:
    """Measure how far `result` is from `reference`: the values of one output, one per feed."""
    pairs: list[tuple[Array, Array]] = []
    for expected, got in zip(reference, result, strict=True):
        if (clash := _clash(expected, got)) is not None:
            return _incomparable(output, clash)
        pairs += zip(_arrays(expected), _arrays(got), strict=True)
    exact = all(_identical(expected, got) for expected, got in pairs)
    if any(expected.dtype.kind in "OUST" for expected, _ in pairs):
        return Deviation(output, exact, *((0.0, 0.0, math.inf, 1.0) if exact else APART), note=_degenerate(pairs))
    return Deviation(output, exact, *_measure(pairs), _epsilon(pairs), _degenerate(pairs))


# absolute, relative, SQNR, cosine of values that cannot be compared as numbers
APART = (math.inf, math.inf, -math.inf, 0.0)


def _incomparable(output: str, why: str) -> Deviation:
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


def _identical(expected: Any, got: Any) -> bool:
    if _clash(expected, got) is not None:
        return False
    return all(_same_bits(a, b) for a, b in zip(_arrays(expected), _arrays(got), strict=True))


def _same_bits(a: Array, b: Array) -> bool:
    if a.dtype.kind in "OUST":
        return bool(np.array_equal(a, b))
    return a.tobytes() == b.tobytes() or (_floating(a) and bool(np.array_equal(_wide(a), _wide(b), equal_nan=True)))


def _measure(pairs: Sequence[tuple[Array, Array]]) -> tuple[float, float, float, float]:
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
    relative = 0.0 if worst == 0 else worst / largest if largest else math.inf
    return worst, relative, _decibel(energy, noise), _cosine(product, energy, other)


def _decibel(energy: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(energy / noise) if energy else -math.inf


def _cosine(product: float, energy: float, other: float) -> float:
    norm = math.sqrt(energy) * math.sqrt(other)
    return min(product / norm, 1.0) if norm else float(energy == other)


def _degenerate(pairs: Sequence[tuple[Array, Array]]) -> str:
    """Say if hardly any error could show in the reference: empty, nowhere finite, or one value throughout."""
    arrays = [expected.ravel() for expected, _ in pairs if expected.size]
    if not arrays:
        return "empty, so there was nothing to compare"
    if all(_floating(array) and not np.isfinite(_wide(array)).any() for array in arrays):
        return "the reference is nowhere finite, so the check is weak"
    first = arrays[0][:1]
    if sum(array.size for array in arrays) > 1 and all(np.all(array == first) for array in arrays):
        return f"the reference is {first[0]} throughout, so the check is weak"
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
