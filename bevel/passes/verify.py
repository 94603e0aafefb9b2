"""Translation validation: run two models on the same inputs and say how far apart they are."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from bevel.backends.chance import OLDEST, called, unsteady
from bevel.backends.coded import Decoded
from bevel.backends.onnxruntime import Level, Session
from bevel.errors import CalibrationError, PromiseBroken, UnsupportedModel
from bevel.passes.base import Exact, Lossy, Masked, Preserving, Promise, Runs
from bevel.passes.deviation import Deviation, deviate, identical, incomparable
from bevel.passes.rounding import leave_out_rounding, resolutions, unit

__all__ = [
    "Amplified",
    "Deviation",
    "Observation",
    "Unrounded",
    "Verdict",
    "apart_from_rounding",
    "compare",
    "deviate",
    "observe",
    "verify",
]

# Half-precision kernels compute in float32 and round at every node; two such roundings on each side differ by 4 units.
ROUNDINGS = 4
# Rounding to a quantization step moves a value by half a step at most, a rounding that falls the other way by a whole.
FLIP = 2
# One unit in the last place of a number in single precision, relative to it.
SINGLE = 2.0**-23
# Where one unit in the last place of inputs and weights moves an output, `ROUNDINGS` of them move it as many times as
# far. An error up to that is rounding, if it is small whatever made it: at most a hundred times what sums may differ
# by (1e-5). Beyond that, the graph has to be compared in pieces.
SMALL = 1e-3


@dataclass(frozen=True)
class Observation:
    """What a model answered: one mapping of outputs per feed; `stable` is False if a second run answered otherwise.

    `resolutions` are those of outputs that are exact to so much only, whatever their size.
    """

    answers: tuple[Mapping[str, Any], ...]
    stable: bool = True
    resolutions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unrounded:
    """The comparison repeated with the rounding of quantized activations left out of both models.

    `outputs` are its deviations, `noise` is by output what that rounding does to the reference.
    """

    activations: int
    outputs: Mapping[str, Deviation]
    noise: Mapping[str, float]


@dataclass(frozen=True)
class Amplified:
    """How far the reference's outputs move when its inputs and weights do by one unit in the last place, by output.

    `pieces` is into how many pieces the graph had to be cut for each to be as promised, given what the reference has
    there, and `error` the largest at a cut; 0 pieces if that was not found.
    """

    moves: Mapping[str, float]
    pieces: int = 0
    error: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether a promise was kept, with the evidence. `max_error` is the user's limit, for lossy passes.

    `unrounded` is there if quantized activations are rounded and the plain comparison failed. It decides then: without
    the rounding the promise must hold as it stands, and with it no error may be larger than flipped roundings make.
    `amplified` is there if it failed all the same: whether the network multiplies roundings so much that they explain
    the error, and whether the promise holds piece by piece. Both must be so for it to be kept, unless the error is no
    larger than what single roundings make.
    """

    promise: Promise
    outputs: tuple[Deviation, ...]
    feeds: int
    max_error: float | None = None
    unrounded: Unrounded | None = None
    amplified: Amplified | None = None

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
        multiplied = (self._multiplied(deviation) for deviation in self.outputs if self._kept_in_pieces(deviation))
        alike = (self._alike(deviation) for deviation in self.outputs if self._kept_like_units(deviation))
        return (*coarse, *flipped, *multiplied, *alike)

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
        if deviation.exact or deviation.relative <= self.limit(deviation):
            return True
        return self._kept_unrounded(deviation) or self._kept_like_units(deviation) or self._kept_in_pieces(deviation)

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

    def explained(self, deviation: Deviation) -> bool:
        """Tell whether the network makes an error as large as this of rounding: of what the promise allows a layer."""
        return deviation.relative <= self.limit(deviation) / max(SINGLE, deviation.epsilon) * self._moved(deviation)

    def _moved(self, deviation: Deviation) -> float:
        return 0.0 if self.amplified is None else self.amplified.moves.get(deviation.output, 0.0)

    def _kept_like_units(self, deviation: Deviation) -> bool:
        """Tell whether an output is over the limit by a small error that single roundings make as well."""
        if deviation.relative <= self.limit(deviation) or self._kept_unrounded(deviation):
            return False
        return deviation.relative <= min(ROUNDINGS * self._moved(deviation), SMALL)

    def _alike(self, deviation: Deviation) -> str:
        return (
            f"output {deviation.output}: error {deviation.relative:.2g} is rounding, which the network multiplies: one "
            f"unit in the last place of inputs and weights moves it by {self._moved(deviation):.2g}"
        )

    def _kept_in_pieces(self, deviation: Deviation) -> bool:
        """Tell whether an output is over the limit only because the network multiplies roundings."""
        if self.amplified is None or not self.amplified.pieces or deviation.relative <= self.limit(deviation):
            return False
        kept_otherwise = self._kept_unrounded(deviation) or self._kept_like_units(deviation)
        return self.explained(deviation) and not kept_otherwise

    def _multiplied(self, deviation: Deviation) -> str:
        assert self.amplified is not None
        return (
            f"output {deviation.output}: error {deviation.relative:.2g} because the network multiplies roundings (one "
            f"unit in the last place of inputs and weights alone moves it by {self._moved(deviation):.2g}); in "
            f"{self.amplified.pieces} pieces, each given what the reference has there, the error is at most "
            f"{self.amplified.error:.2g}"
        )

    def _sensitive(self, deviation: Deviation) -> str:
        """Say what rounding has to do with an error."""
        if self.amplified is None or deviation.output not in self.amplified.moves:
            return ""
        moved = f"one unit in the last place of inputs and weights moves it by {self._moved(deviation):.2g}"
        if not self.explained(deviation):
            return f"; this is no rounding: {moved}"
        return f"; this may be rounding, which the network multiplies: {moved} already"

    def demand(self, where: str, remedy: str = "") -> None:
        """Raise `PromiseBroken`, naming the worst output and its error, unless the promise was kept."""
        if self.kept:
            return
        worst = max(self.broken, key=lambda deviation: deviation.relative)
        limit = "0" if isinstance(self.promise, Exact) else f"{self.limit(worst):.2g}"
        raise PromiseBroken(
            f"promised {type(self.promise).__name__} (error at most {limit}), "
            f"but output {worst.output!r} has error {worst.relative:.3g}"
            + (f" ({worst.note})" if worst.note else "")
            + self._sensitive(worst),
            where=where,
            remedy=remedy,
        )


def verify(reference: ir.Model, result: ir.Model, feeds: Iterable[Mapping[str, Any]], promise: Promise) -> Verdict:
    """Run both models on `feeds` in ONNX Runtime and compare their outputs as `promise` asks.

    `feeds` is read once per model. Caches that are codes are given codes of what feeds have in floats, and decoded.
    Raises `UnsupportedModel` if a model does not run, or if the reference does not answer the same twice (random
    operators that cannot be held), and `CalibrationError` if there are no feeds.
    """
    refuse_unsteady(reference)
    with Session(reference, level=Level.AS_WRITTEN) as session:
        expected = observe(Decoded(session, reference), feeds, repeat=True, resolutions=resolutions(reference))
    with Session(result, level=Level.AS_WRITTEN) as session:
        verdict = compare(expected, observe(Decoded(session, result), feeds), promise, epsilon=unit(reference))
    return apart_from_rounding(verdict, expected, reference, result, feeds)


def refuse_unsteady(model: ir.Model) -> None:
    """Raise `UnsupportedModel` if a model has a random operator that draws anew in each run, naming the first."""
    for node in unsteady(model):
        raise UnsupportedModel(
            "draws other numbers in each run, so nothing can be verified",
            where=called(node),
            remedy=f"convert the model to opset {OLDEST}, which holds all but Multinomial, or run with --no-verify",
        )


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
            aimed = observe(session, feeds, resolutions=expected.resolutions)
    except UnsupportedModel:  # clipping has fewer types than quantization
        return verdict
    with Session(smooth_result, level=Level.AS_WRITTEN) as session:
        outputs = compare(aimed, observe(session, feeds), verdict.promise, epsilon=unit(smooth)).outputs
    noise = {deviation.output: deviation.relative for deviation in compare(expected, aimed, Lossy()).outputs}
    return replace(verdict, unrounded=Unrounded(count, {found.output: found for found in outputs}, noise))


def observe(
    session: Runs,
    feeds: Iterable[Mapping[str, Any]],
    *,
    repeat: bool = False,
    resolutions: Mapping[str, float] | None = None,
) -> Observation:
    """Run a model on every feed. With `repeat`, run the first one twice, to see whether its answers are stable."""
    answers: list[Mapping[str, Any]] = []
    stable = True
    for feed in feeds:
        answers.append(session.run(feed))
        if repeat and len(answers) == 1:
            again = session.run(feed)
            stable = all(identical(answers[0][name], again[name]) for name in again)
    return Observation(tuple(answers), stable, resolutions or {})


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
    outputs = (_deviation(name, reference, result) for name in names)
    missing = [name for name in result.answers[0] if name not in names]
    extra = (incomparable(name, "not an output of the reference") for name in missing)
    found = [replace(deviation, epsilon=max(deviation.epsilon, epsilon)) for deviation in (*outputs, *extra)]
    return Verdict(promise, tuple(found), len(reference.answers), max_error)


def _deviation(name: str, reference: Observation, result: Observation) -> Deviation:
    expected = [answer[name] for answer in reference.answers]
    return deviate(
        name, expected, [answer.get(name) for answer in result.answers], reference.resolutions.get(name, 0.0)
    )
