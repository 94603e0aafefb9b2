"""Proof of operator rules: what is done to a dimension of the inputs is found again in the outputs, and nothing else.

A rule claims that a dimension may be permuted, or that entries of it may be dropped. The claim is executed: the inputs
are indexed along every axis that holds the dimension, the model is edited the same way, both are run in ONNX Runtime,
and every output must be the original one, indexed the same way. Dropping is compared with the model at full size whose
consumers of the dropped entries are zeroed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bevel.backends.onnxruntime import Level, Session
from bevel.errors import EditRefused, UnsupportedModel
from bevel.ir.axes import Dim, atoms
from bevel.ir.canonical import canonicalize
from bevel.ir.coupling import FIXED, FREE, Freedom
from bevel.ir.edit import apply, entries, zero_dropped
from bevel.ir.groups import Analysis, analyse
from bevel.ir.site import Axes
from bevel.ir.sizes import is_symbolic

ULPS: Final = 64
"""Units in the last place of an output's largest magnitude by which a reordered sum may differ.

Summing n products in another order moves the result by up to n - 1 units of the sum of their magnitudes, and by about
sqrt(n) of it for random signs. Conformance cases sum at most some thousand products.
"""

ULPS_OF_ONE: Final = 4
"""Units in the last place of 1.0 that are allowed as well: a gate rounds near one, however little it lets through.

A GRU whose update gate saturates returns `(1 - z) * h`, where a unit of z is all that is left; it was seen to be 1.5.
"""

Array: TypeAlias = np.ndarray[Any, Any]
Feed: TypeAlias = Mapping[str, Any]  # an array, a list of arrays (a sequence) or None (an empty optional) by name
Taken: TypeAlias = dict[int, Array]  # entries taken, by the dimension's place in `open_dims`


@dataclass(frozen=True)
class Disagreement:
    """A dimension that a rule lets free although the model does not."""

    kind: Freedom
    places: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        return f"{self.kind.name or 'sizes'} {' '.join(self.places)}: {self.what}"


@dataclass(frozen=True)
class Checked:
    """What was tried on a model: how many dimensions by freedom, on which operators, and what failed.

    Dimensions do not count where the model's outputs are constant: nothing would show. `fixed` gives, for a model
    without any free dimension, the reasons; `skipped` says why a model, or a dimension of it, could not be tried.
    """

    permuted: int = 0
    selected: int = 0
    permuted_operators: frozenset[tuple[str, str]] = frozenset()
    selected_operators: frozenset[tuple[str, str]] = frozenset()
    disagreements: tuple[Disagreement, ...] = ()
    skipped: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model of known sizes in canonical form, with feeds and what it makes of them."""

    model: ir.Model
    feeds: tuple[Feed, ...]
    results: tuple[Feed, ...]

    @property
    def shows(self) -> bool:
        """Say whether some output is not constant, so that a wrong index can be seen."""
        if any(_varies(value) for result in self.results for value in result.values()):
            return True
        first, *others = self.results
        return any(difference(result[name], value, exactly=True) for result in others for name, value in first.items())


def check_rule(model: ir.Model, feed: Feed, *, seed: int = 0) -> Checked:
    """Try every dimension that the rules leave free in a model: several at a time, any two of them apart at least once.

    Where something fails, they are tried one at a time, and all at once, to name what does. The interface is left open,
    so the dimensions of graph inputs are tried too. Floats in `feed` are also drawn anew from the same range. The model
    itself is left as it is. Raises `UnsupportedModel` if it does not run on `feed`.
    """
    subject = prepare(model, feed, np.random.default_rng(seed))
    if subject is None:
        return Checked(skipped=("its outputs differ from run to run",))
    analysis = analyse(subject.model, interface=False)
    if wrong := tuple(_wrong_sizes(analysis, subject.results[0])):
        return Checked(disagreements=wrong)
    dims = open_dims(analysis)
    freedoms = [_freedom(analysis, dim) for dim in dims]
    trials = {
        kind: list(_trials(subject, dims, _drawn(kind, dims, freedoms, np.random.default_rng(seed)), kind))
        for kind in (Freedom.PERMUTE, FREE)
    }
    done = [trial for found in trials.values() for trial in found]
    tried = {
        kind: {dims[number] for trial in found if not trial.skipped for number in trial.numbers if subject.shows}
        for kind, found in trials.items()
    }

    def places(trial: Trial) -> tuple[str, ...]:
        return tuple(place for number in trial.numbers for place in _places(analysis, dims[number]))

    return Checked(
        permuted=len(tried[Freedom.PERMUTE]),
        selected=len(tried[FREE]),
        permuted_operators=frozenset(operators_with(analysis, tried[Freedom.PERMUTE])),
        selected_operators=frozenset(operators_with(analysis, tried[FREE])),
        disagreements=tuple(Disagreement(trial.kind, places(trial), trial.problem) for trial in done if trial.problem),
        skipped=tuple(f"{' '.join(places(trial))}: {trial.skipped}" for trial in done if trial.skipped),
        fixed=() if done else tuple(dict.fromkeys(mark.why for mark in analysis.facts.marks)),
    )


def _wrong_sizes(analysis: Analysis, result: Feed) -> Iterator[Disagreement]:
    """Find outputs whose axes do not have the sizes that the outputs have; a size may be unknown."""
    for name, axes in _axes_of(analysis, analysis.model.graph.outputs).items():
        if axes is None or not isinstance(array := result[name], np.ndarray):
            continue
        sizes = [axis.size for axis in axes]
        pairs = zip(sizes, array.shape, strict=False)
        if len(sizes) != array.ndim or any(size != real and not is_symbolic(size) for size, real in pairs):
            yield Disagreement(FIXED, (name,), f"its axes have sizes {sizes} instead of {array.shape}")


def open_dims(analysis: Analysis) -> list[Dim]:
    """List the dimensions of graph inputs, initializers and graph outputs: the same order for a model and its clone."""
    graph = analysis.model.graph
    open_axes = [analysis.facts.of(value) for value in (*graph.inputs, *graph.outputs)]
    open_axes += [axes for value, axes in analysis.facts.axes.items() if value.is_initializer()]
    found = dict.fromkeys(atom for axes in open_axes for axis in axes or () for atom in atoms(axis))
    return [dim for dim in found if dim.size > 1]


def _freedom(analysis: Analysis, dim: Dim) -> Freedom:
    freedom = FREE
    for mark in analysis.marks.get(dim, ()):
        freedom &= mark.keeps
    return freedom


def _drawn(kind: Freedom, dims: Sequence[Dim], freedoms: Sequence[Freedom], random: np.random.Generator) -> list[Taken]:
    """Draw what to take of each dimension that allows it."""
    draw = _order if kind is Freedom.PERMUTE else _subset
    free = [number for number, freedom in enumerate(freedoms) if kind in freedom]
    return [{number: draw(dims[number].size, random)} for number in free]


def _order(size: int, random: np.random.Generator) -> Array:
    """Draw a permutation that moves something."""
    order = random.permutation(size)
    return np.roll(order, 1) if np.array_equal(order, np.arange(size)) else order


def _subset(size: int, random: np.random.Generator) -> Array:
    """Draw some entries, not all, in any order."""
    return random.permutation(size)[: random.integers(1, size)]


def _places(analysis: Analysis, dim: Dim) -> list[str]:
    """Name the axes of inputs, initializers and outputs that hold a dimension."""
    graph = analysis.model.graph
    values = (*graph.inputs, *(value for value in analysis.facts.axes if value.is_initializer()), *graph.outputs)
    return [
        f"{value.name}[{place}]"
        for value in dict.fromkeys(values)
        for place, axis in enumerate(analysis.axes(value) or ())
        if dim in atoms(axis)
    ]


def operators_with(analysis: Analysis, wanted: Collection[Dim]) -> Iterator[tuple[str, str]]:
    """Name the operators of which some input or output holds one of the dimensions."""
    for node in ir.traversal.RecursiveGraphIterator(analysis.model.graph):
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        axes = [axis for value in values for axis in analysis.axes(value) or ()]
        if any(atom in wanted for axis in axes for atom in atoms(axis)):
            yield node.domain, node.op_type


# The model and what it computes


def prepare(model: ir.Model, feed: Feed, random: np.random.Generator) -> Subject | None:
    """Bring a clone to the sizes of the feed and run it; None if two runs differ."""
    model = model.clone()
    for value in model.graph.inputs:
        if isinstance(given := feed.get(value.name or ""), np.ndarray):
            value.shape = ir.Shape(given.shape)
    canonicalize(model)
    with Session(model, level=Level.AS_WRITTEN, threads=1) as session:
        result = session.run(feed)
        if any(difference(result[name], again, exactly=True) for name, again in session.run(feed).items()):
            return None
        redrawn = {name: _redrawn(value, random) for name, value in feed.items()}
        second = _try_run(session, redrawn)
    for value in model.graph.outputs:
        if isinstance(array := result[value.name or ""], np.ndarray):
            value.shape = ir.Shape(array.shape)
    if second is None or any(_shape(second[name]) != _shape(array) for name, array in result.items()):
        return Subject(model, (feed,), (result,))
    return Subject(model, (feed, redrawn), (result, second))


def _try_run(session: Session, feed: Feed) -> Feed | None:
    try:
        return session.run(feed)
    except UnsupportedModel:  # the operator does not take such data
        return None


def _varies(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_varies, value))
    return np.size(value) > 1 and bool((np.ravel(value)[1:] != np.ravel(value)[:-1]).any())


def _shape(value: Any) -> Any:
    """Return the shape of an array, or of each array of a sequence."""
    return [_shape(item) for item in value] if isinstance(value, list) else np.shape(value)


def _redrawn(value: Any, random: np.random.Generator) -> Any:
    """Draw floats anew from the range of those given; other data may address something and stays."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.size < 2:
        return value
    finite = value[np.isfinite(value)]
    if not finite.size or finite.min() == finite.max():
        return value
    return random.uniform(finite.min(), finite.max(), value.shape).astype(value.dtype)


# One trial


@dataclass(frozen=True)
class Trial:
    """Dimensions that were tried at once, by their places in `open_dims`: what failed, or why it could not be tried."""

    kind: Freedom
    numbers: tuple[int, ...]
    problem: str = ""
    skipped: str = ""


def _trials(subject: Subject, dims: Sequence[Dim], drawn: Sequence[Taken], kind: Freedom) -> Iterator[Trial]:
    """Try what was drawn, few times if all is well; else one by one and all at once."""
    together = [_trial(subject, _joined([drawn[place] for place in some]), kind) for some in told_apart(len(drawn))]
    bad = [trial for trial in together if trial.problem or trial.skipped]
    if not bad:
        yield from together
        return
    each = [*([taken] for taken in drawn), *([drawn] if len(drawn) > 1 else ())]
    named = [_trial(subject, _joined(some), kind) for some in each]
    yield from named
    if not any(trial.problem or trial.skipped for trial in named):
        yield from bad


def told_apart(count: int) -> list[list[int]]:
    """Put numbers into few sets such that each is in one, and any two are in different ones: by their binary digits.

    >>> told_apart(1), told_apart(3)
    ([[0]], [[0, 2], [1, 2]])
    """
    return [[number for number in range(count) if (number + 1) >> digit & 1] for digit in range(count.bit_length())]


def _joined(takings: Sequence[Taken]) -> Taken:
    return {number: index for taken in takings for number, index in taken.items()}


def _trial(subject: Subject, taken: Taken, kind: Freedom) -> Trial:
    try:
        expected = subject.results if kind is Freedom.PERMUTE else _masked(subject, taken)
        return Trial(kind, tuple(taken), problem=_disagreement(subject, expected, taken))
    except (EditRefused, UnsupportedModel) as error:
        return Trial(kind, tuple(taken), skipped=error.what)


def _disagreement(subject: Subject, expected: Sequence[Feed], taken: Taken) -> str:
    """Edit a clone, feed it the entries taken, and compare; return what differs, or nothing."""
    analysis, indices = _clone(subject.model, taken)
    inputs, outputs = _axes_of(analysis, analysis.model.graph.inputs), _axes_of(analysis, analysis.model.graph.outputs)
    apply(analysis, indices)
    feeds = [_each(feed, inputs, indices) for feed in subject.feeds]
    try:
        with Session(analysis.model, level=Level.AS_WRITTEN, threads=1, draft=True) as session:
            results = [session.run(feed) for feed in feeds]
    except UnsupportedModel as error:
        return error.what
    for result, original in zip(results, expected, strict=True):
        for name, value in _each(original, outputs, indices).items():
            if problem := difference(result[name], value):
                return f"output {name!r} {problem}"
    return ""


def _clone(model: ir.Model, taken: Taken) -> tuple[Analysis, dict[Dim, Array]]:
    """Analyse a clone and look up its own dimensions."""
    analysis = analyse(model.clone(), interface=False)
    dims = open_dims(analysis)
    return analysis, {dims[number]: index for number, index in taken.items()}


def _masked(subject: Subject, taken: Taken) -> Sequence[Feed]:
    """Run the model at full size with the consumers of dropped entries zeroed."""
    analysis, indices = _clone(subject.model, taken)
    if not any(atom in indices for place in analysis.facts.sums for atom in atoms(place.axis)):
        return subject.results
    zero_dropped(analysis, indices)
    with Session(analysis.model, level=Level.AS_WRITTEN, threads=1, draft=True) as session:
        return [session.run(feed) for feed in subject.feeds]


def _axes_of(analysis: Analysis, values: Sequence[ir.Value]) -> dict[str, Axes | None]:
    return {value.name or "": analysis.facts.of(value) for value in values}


def _each(feed: Feed, axes: Mapping[str, Axes | None], indices: Mapping[Dim, Array]) -> dict[str, Any]:
    return {name: _indexed(value, axes.get(name), indices) for name, value in feed.items()}


def _indexed(value: Any, axes: Axes | None, indices: Mapping[Dim, Array]) -> Any:
    """Take entries along every axis of an array, or of each array of a sequence."""
    if isinstance(value, list):
        return [_indexed(item, axes, indices) for item in value]
    if value is None or axes is None:
        return value
    for place, axis in enumerate(axes):
        if any(atom in indices for atom in atoms(axis)):
            value = np.take(value, entries(axis, indices), axis=place)
    return value


def difference(got: Any, expected: Any, *, exactly: bool = False, ulps: float = ULPS) -> str:
    """Say how a result differs from what it should be, by more than so many units; nothing if it does not."""
    if got is None or expected is None:
        return "" if got is expected else "is absent in one of the two"
    if isinstance(expected, list):
        if len(got) != len(expected):
            return f"has {len(got)} items instead of {len(expected)}"
        problems = (difference(a, b, exactly=exactly, ulps=ulps) for a, b in zip(got, expected, strict=True))
        return next(filter(None, problems), "")
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        return f"has shape {got.shape} instead of {expected.shape}"
    if not _is_float(got):
        return _exact_difference(got, expected)
    return _float_difference(got, expected, 0 if exactly else ulps, 0 if exactly else ULPS_OF_ONE)


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float"))


def _exact_difference(got: Array, expected: Array) -> str:
    wrong = int(np.count_nonzero(got != expected))
    return f"differs at {wrong} of {got.size} entries" if wrong else ""


def _float_difference(got: Array, expected: Array, ulps: float, ulps_of_one: float) -> str:
    """Compare floats relative to the largest finite magnitude; what is not finite must be the same."""
    unit = float(ml_dtypes.finfo(got.dtype).eps)  # type: ignore[no-untyped-call]
    a, b = got.astype(np.complex128), expected.astype(np.complex128)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return "differs where it is not finite"
    error = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    largest = float(np.abs(b[finite]).max(initial=0.0))
    allowed = unit * max(ulps * largest, ulps_of_one)
    return f"differs by {error:.3g}, more than {allowed:.3g}" if error > allowed else ""
