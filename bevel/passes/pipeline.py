"""Run passes one after the other, and check each one's promise.

`optimize` works on a clone (tensors are shared, so it is cheap) and hands it over to the caller's model only after the
last pass was verified: whatever stops a run, the model is as it was.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from bevel.backends.chance import called, random_nodes
from bevel.backends.coded import Decoded
from bevel.backends.onnxruntime import IN_MEMORY_BYTES, Level, Session, latencies, latency
from bevel.errors import BevelError, PassFailed, PromiseBroken, UsageError
from bevel.ir.coded import is_wide, narrow
from bevel.ir.collector import sparing_the_old
from bevel.ir.cost import cost
from bevel.ir.signature import signature
from bevel.passes.amplified import apart_from_amplification
from bevel.passes.base import Context, Exact, Lossy, Outcome, Pass, Progress, silent
from bevel.passes.calibration import Calibration, Feed, Source
from bevel.passes.execution import Execution
from bevel.passes.own_words import in_own_words
from bevel.passes.recipe import Pipeline, as_pipeline, from_recipe, parse
from bevel.passes.reproducer import keep
from bevel.passes.rounding import resolutions, unit
from bevel.passes.synthesis import synthesize
from bevel.passes.verify import FLIP, Observation, Verdict, apart_from_rounding, compare, observe, refuse_unsteady
from bevel.report import Deployment, Report, Step

__all__ = ["Hooks", "Pipeline", "adopt", "from_recipe", "optimize", "parse"]

# Made-up feeds per run: two sizes of every symbolic axis, two draws each.
FEEDS = 4
# Of a calibration set, the first so many inputs verify each pass; all are there for passes that gather statistics.
VERIFIED_FEEDS = 64


@dataclass(frozen=True)
class Hooks:
    """What a caller can watch or steer while passes run.

    `log` gets a line per event. `after` gets each pass and the model it made. `bisect` stops running passes after
    that many, to find the one that breaks a model. `keep_failed` is a folder for what is needed to see a failure again.
    """

    log: Callable[[str], None] = lambda line: None
    progress: Progress = silent
    after: Callable[[Pass, ir.Model], None] = lambda step, model: None
    bisect: int | None = None
    keep_failed: Path | None = None


def optimize(
    model: ir.Model,
    pipeline: str | Pipeline | Pass | Sequence[Pass],
    *,
    calibration: Source | Calibration | None = None,
    verify: bool = True,
    seed: int = 0,
    max_error: float | None = None,
    measure_latency: bool = False,
    dry_run: bool = False,
    hooks: Hooks | None = None,
) -> Report:
    """Run `pipeline` on `model` in place, and verify every pass in ONNX Runtime.

    `calibration` gives the inputs (see `bevel.passes.calibration`); without it they are made up from the signature.
    `max_error` bounds the relative error of lossy passes. On any error, and with `dry_run`, the model stays as it was.
    After success `model.graph` is a new graph: values and nodes looked up before are those of the old one.

    Raises `PromiseBroken`, `PassFailed` (a pass raised), or another `BevelError` (it refused, or nothing can be run).
    """
    _check_numbers(seed, max_error)
    with sparing_the_old():
        run = _Run(model, as_pipeline(pipeline), calibration, verify, seed, max_error, hooks or Hooks())
        result = run.narrowed(run.all_passes())
        report = run.report(result, run.deployment(result) if measure_latency else Deployment())
    if not dry_run:
        adopt(model, result)
    return report


def _check_numbers(seed: int, max_error: float | None) -> None:
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", remedy="give 0 or more")
    if max_error is not None and not max_error >= 0:
        raise UsageError(f"max_error {max_error} is no limit", remedy="give a number from 0 on")


def adopt(model: ir.Model, other: ir.Model) -> None:
    """Make `model` what `other` is, in one step; `other` must not be used afterwards."""
    model.functions.clear()
    model.functions.update(other.functions)
    model.metadata_props.clear()
    model.metadata_props.update(other.metadata_props)
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(model, field, getattr(other, field))
    model.device_configurations = other.device_configurations
    model.graph = other.graph


class _Run:
    """The state of one `optimize`: the steps so far, and what the latest model answered."""

    def __init__(
        self,
        model: ir.Model,
        pipeline: Pipeline,
        calibration: Source | Calibration | None,
        verify: bool,
        seed: int,
        max_error: float | None,
        hooks: Hooks,
    ) -> None:
        self.original = model
        self.pipeline = pipeline
        self.seed = seed
        self.max_error = max_error
        self.hooks = hooks
        self.steps: list[Step] = []
        self.calibration = calibration_of(calibration, model, seed)
        self.first: Observation | None = None
        self.latest: Observation | None = None
        if verify:
            refuse_unsteady(model)
            self._observe_original(made_up=calibration is None)

    def all_passes(self) -> ir.Model:
        """Run the passes, each on a clone of what the one before it made; return the last."""
        current = self.original.clone()
        for number, step in enumerate(self.pipeline, 1):
            skipped = self.hooks.bisect is not None and number > self.hooks.bisect
            if self.hooks.bisect is not None:
                self.hooks.log(f"BISECT: {'NOT ' if skipped else ''}running pass ({number}) {step.name}")
            if not skipped:
                self.hooks.progress(f"{step.name}", number - 1, len(self.pipeline))
                current = self._one_pass(step, current)
                self.hooks.after(step, current)
        self.hooks.progress("done", len(self.pipeline), len(self.pipeline))
        return current

    def narrowed(self, wide: ir.Model) -> ir.Model:
        """Return the model with codes at its interface, where a pass asks for that: it must answer the same."""
        if not is_wide(wide):
            return wide
        result, start = wide.clone(), time.perf_counter()
        narrow(result)
        between = time.perf_counter()
        verdict = self._same_answers(wide, result)
        promise = Exact() if verdict is None else verdict.promise
        seconds = between - start, time.perf_counter() - between
        self.steps.append(Step(INTERFACE, str(promise), verdict, cost(result), *seconds))
        return result

    def _same_answers(self, wide: ir.Model, result: ir.Model) -> Verdict | None:
        """Check that codes at the interface change nothing.

        ONNX Runtime rounds to half precision in other places where there are other casts beside a node, so that codes
        may be rounded the other way: then the error may be what flipped roundings make of that of the caches.
        """
        if self.first is None or self.latest is None:
            return None
        found = _observed(result, self.calibration)
        verdict = compare(self.latest, found, Exact())
        if not verdict.kept and unit(wide):
            flipped = FLIP * compare(self.first, self.latest, Lossy()).error
            verdict = compare(self.latest, found, Lossy(), max_error=flipped)
        verdict.demand(INTERFACE, KEEP_REMEDY)
        return verdict

    def report(self, result: ir.Model, deployment: Deployment) -> Report:
        """Sum the run up."""
        error = compare(self.first, self.latest, Lossy()).error if self.first and self.latest else math.nan
        feeds = len(self.first.answers) if self.first else 0
        return Report(
            before=cost(self.original),
            after=cost(result),
            steps=tuple(self.steps),
            error=error,
            deployment=deployment,
            inputs=f"{feeds} inputs ({self.calibration.source}){_held(self.original)}" if feeds else "",
            seed=self.seed,
        )

    def deployment(self, result: ir.Model) -> Deployment:
        """Run the original and `result` as ONNX Runtime deploys them: how long they take, what its rewrites change."""
        feed = next(iter(self.calibration))
        if max(cost(self.original).bytes, cost(result).bytes) > IN_MEMORY_BYTES:
            with Session(self.original) as before:
                latency_before = latency(before, feed)
            with Session(result) as session:
                after = Decoded(session, result)
                return Deployment(latency_before, latency(after.fed(feed), feed), self._drift(after, feed))
        with Session(self.original) as before, Session(result) as session:
            after = Decoded(session, result)
            latency_before, latency_after = latencies((before, after.fed(feed)), feed)
            return Deployment(latency_before, latency_after, self._drift(after, feed))

    def _drift(self, session: Decoded, feed: Feed) -> float:
        """Return how far a deployed model's answer is from the one of its nodes run one by one."""
        if self.latest is None:
            return math.nan
        first = replace(self.latest, answers=self.latest.answers[:1])
        return compare(first, observe(session, [feed]), Lossy()).error

    def _observe_original(self, *, made_up: bool) -> None:
        with Session(self.original, level=Level.AS_WRITTEN) as session:
            if made_up:
                self.calibration = _made_up(self.original, self.seed, session)
            feeds, coarse = islice(self.calibration, VERIFIED_FEEDS), resolutions(self.original)
            self.first = self.latest = observe(session, feeds, repeat=True, resolutions=coarse)
        compare(self.first, self.first, Lossy())  # refuses zero inputs and answers that change from run to run

    def _one_pass(self, step: Pass, given: ir.Model) -> ir.Model:
        result = given.clone()
        context = Context(self.seed, self.calibration, Execution(), self.hooks.progress, max_error=self.max_error)
        with self._kept_on_failure(step, given):
            start = time.perf_counter()
            with _Boundary(step):
                outcome = step.run(result, context)
            _same_interface(step, given, result)
            between = time.perf_counter()
            verdict = self._verdict(step, given, result, outcome)
            end = time.perf_counter()
        notes = outcome.notes
        self.steps.append(
            Step(str(step), str(step.promise), verdict, cost(result), between - start, end - between, notes)
        )
        return result

    def _verdict(self, step: Pass, given: ir.Model, result: ir.Model, outcome: Outcome) -> Verdict | None:
        if self.latest is None:
            return None
        expected, reference = self.latest, given
        if outcome.reference is not None:
            reference = given.clone()
            with _Boundary(step):
                outcome.reference(reference)
            expected = _observed(reference, self.calibration)
        found = self._observed_result(step, result)
        verdict = compare(expected, found, step.promise, max_error=self.max_error, epsilon=unit(given))
        feeds = list(islice(self.calibration, VERIFIED_FEEDS)) if not verdict.kept else []
        verdict = apart_from_rounding(verdict, expected, reference, result, feeds)
        verdict = apart_from_amplification(verdict, expected, reference, result, feeds, outcome.where)
        verdict.demand(step.name, _remedy(outcome))
        self.latest = found
        return verdict

    def _observed_result(self, step: Pass, result: ir.Model) -> Observation:
        """Run what the pass made; that it does not run is a broken promise."""
        try:
            return _observed(result, self.calibration)
        except BevelError as error:
            raise PromiseBroken(f"its result {error.what}", where=step.name, remedy=KEEP_REMEDY) from error

    @contextmanager
    def _kept_on_failure(self, step: Pass, given: ir.Model) -> Iterator[None]:
        try:
            yield
        except (PromiseBroken, PassFailed) as error:
            if self.hooks.keep_failed is not None:
                self.hooks.log(self._kept(self.hooks.keep_failed, step, given, error))
            raise

    def _kept(self, folder: Path, step: Pass, given: ir.Model, error: BevelError) -> str:
        """Save what is needed to see a failure again, and say where, or why not."""
        try:
            keep(folder, given, str(step), self.seed, self.calibration, error)
        except OSError as unwritten:
            return f"what is needed to see it again was not saved: {unwritten}"
        return f"what is needed to see it again is in {folder}"


def _held(model: ir.Model) -> str:
    """Say which random operators were held while models were compared."""
    nodes = random_nodes(model)
    more = f" and {len(nodes) - 1} more" if nodes[1:] else ""
    return f"; random operators drew the same in each run: {called(nodes[0])}{more}" if nodes else ""


def _remedy(outcome: Outcome) -> str:
    """Say which parts of the model to leave out, if the pass knows, and how to see the failure again."""
    return f"worst: {', '.join(outcome.worst)}; {KEEP_REMEDY}" if outcome.worst else KEEP_REMEDY


INTERFACE = "(caches as codes)"
"""What a report calls the step that takes the codes of caches to the interface, after the last pass."""
KEEP_REMEDY = "the result was thrown away; --keep-failed FOLDER saves what is needed to see it again"


class _Boundary:
    """Turns whatever a pass raises, other than a `BevelError`, into `PassFailed`."""

    def __init__(self, step: Pass) -> None:
        self.step = step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, BevelError):
            raise PassFailed(
                f"raised {type(error).__name__}: {error}", where=self.step.name, remedy="this is a bug in the pass"
            ) from error


def calibration_of(source: Source | Calibration | None, model: ir.Model, seed: int) -> Calibration:
    """Return the inputs; without a source they are made up when first asked for."""
    if source is not None:
        return source if isinstance(source, Calibration) else Calibration.of(source, model)
    original = model.clone()

    @cache
    def first() -> Calibration:
        with Session(original, level=Level.AS_WRITTEN) as session:
            return _made_up(original, seed, session)

    def made_up(count: int = FEEDS) -> Calibration:
        some = first()
        return some if some.more is None else some.more(count)

    return Calibration(made_up, "made-up inputs", made_up, lambda: first().likely())


def _made_up(model: ir.Model, seed: int, session: Session) -> Calibration:
    """Make a few inputs up that `session`, which has the model loaded, runs on; more are made in another, when read."""
    feeds = synthesize(model, seed, FEEDS, session.run)
    return in_own_words(feeds, signature(model), seed, session.run, partial(Session, model, level=Level.AS_WRITTEN))


def _observed(model: ir.Model, feeds: Calibration) -> Observation:
    with Session(model, level=Level.AS_WRITTEN) as session:
        feed = islice(feeds, VERIFIED_FEEDS)
        return observe(Decoded(session, model), feed, resolutions=resolutions(model))


def _same_interface(step: Pass, given: ir.Model, result: ir.Model) -> None:
    """Raise `PromiseBroken` if inputs or outputs were renamed, reordered, added or removed."""
    for what in ("inputs", "outputs"):
        before = [value.name for value in getattr(given.graph, what)]
        after = [value.name for value in getattr(result.graph, what)]
        if before != after:
            raise PromiseBroken(f"changed the model's {what} from {before} to {after}", where=step.name)
