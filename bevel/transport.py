"""Proof of motions: the numbers of a model are multiplied as its symmetries say, and the outputs have to follow.

A motion claims that tensors can be multiplied along a dimension, each by its own power of one matrix. The claim is
executed: graph inputs and initializers are multiplied, both models are run in ONNX Runtime, and every output must be
the original one, multiplied by its power; outputs without the dimension must not change at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.backends.onnxruntime import Level, Session
from bevel.equivariance import ULPS, Array, Disagreement, Feed, Subject, difference, open_dims, prepare, told_apart
from bevel.errors import UnsupportedModel
from bevel.ir.axes import Axis, Dim, Product, resolve
from bevel.ir.coupling import Freedom
from bevel.ir.crossing import MOTIONS
from bevel.ir.groups import Analysis, analyse
from bevel.ir.mixing import keeping_mean
from bevel.ir.symmetry import Motion

CONDITION: Final = 4
"""The condition number of the matrices that are tried: singular values lie between 1/2 and 2."""

MIXED_ULPS: Final = ULPS * CONDITION
"""Units in the last place of an output's largest magnitude by which a mixed sum may differ.

What is multiplied by a matrix is rounded once more, and sums run over products whose magnitudes add up to as much as
the condition number times those of the original sum. Scales need none of that: powers of two round nothing.
"""

Operator: TypeAlias = tuple[str, str]
Powers: TypeAlias = Mapping[str, Mapping[int, Mapping[tuple[int, ...], Array]]]  # by value, axis and path


@dataclass(frozen=True)
class Trial:
    """What was tried on a model of one kind: how many dimensions, and on which operators."""

    dims: int
    operators: frozenset[Operator]


@dataclass(frozen=True)
class Moved:
    """What was tried on a model, by kind, and what failed; `skipped` says why something could not be tried."""

    trials: Mapping[Freedom, Trial]
    disagreements: tuple[Disagreement, ...] = ()
    skipped: tuple[str, ...] = ()


def check_motions(model: ir.Model, feed: Feed, *, interface: bool = False, seed: int = 0) -> Moved:
    """Try every rotation and linear map that is claimed, and every scale, several at a time and any two of them apart.

    Where scales fail, they are tried one at a time, and all at once, to name what does. Unless `interface` is given,
    the dimensions of graph inputs and outputs move too. The model itself is left as it is. Raises `UnsupportedModel` if
    it does not run on `feed`.
    """
    random = np.random.default_rng(seed)
    subject = prepare(model, feed, random)
    if subject is None:
        return Moved({}, skipped=("its outputs differ from run to run",))
    analysis = analyse(subject.model, interface=interface)
    trials: dict[Freedom, Trial] = {}
    problems: list[Disagreement] = []
    skipped: list[str] = []
    for kind in MOTIONS:
        claims = [(dim, motion) for dim in open_dims(analysis) for motion in analysis.symmetry.motions(dim, kind)]
        if kind is not Freedom.SCALE and not all(map(_finite, subject.feeds)):
            skipped += [f"{motion}: infinite numbers cannot be mixed" for _, motion in claims]
            continue
        problems += _problems(subject, analysis, claims, kind, random)
        if subject.shows:
            trials[kind] = Trial(len({dim for dim, _ in claims}), frozenset(_operators(analysis, claims)))
    return Moved(trials, tuple(problems), tuple(skipped))


Claim: TypeAlias = tuple[Dim, Motion]


def _finite(feed: Feed) -> bool:
    return all(np.isfinite(value).all() for value in feed.values() if isinstance(value, np.ndarray) and _real(value))


def _real(array: Array) -> bool:
    return array.dtype.kind in "fc"


def _named(claims: Sequence[Claim]) -> Iterator[str]:
    for _, motion in claims:
        yield from (f"{each}:{power:+d}" for each, power in motion.exponents.items())


def _operators(analysis: Analysis, claims: Collection[Claim]) -> Iterator[Operator]:
    """Name the operators of which some input or output is multiplied."""
    moved = {each.value for _, motion in claims for each in motion.exponents}
    for node in ir.traversal.RecursiveGraphIterator(analysis.model.graph):
        if not moved.isdisjoint(value for value in (*node.inputs, *node.outputs) if value is not None):
            yield node.domain, node.op_type


# One trial


def _problems(
    subject: Subject, analysis: Analysis, claims: Sequence[Claim], kind: Freedom, random: np.random.Generator
) -> list[Disagreement]:
    """Try claims, few times if all is well with scales; else one by one and, if they are scales, all at once."""

    def tried(some: Sequence[Claim]) -> Iterator[Disagreement]:
        try:
            problem = _problem(subject, analysis, some, kind, random)
        except UnsupportedModel as error:
            problem = error.what
        if problem:
            yield Disagreement(kind, tuple(_named(some)), problem)

    each = [[claim] for claim in claims]
    if kind is not Freedom.SCALE:
        return [found for some in each for found in tried(some)]
    sets = [[claims[place] for place in places] for places in told_apart(len(claims))]
    together = [found for some in sets for found in tried(some)]
    if not together:
        return []
    return [found for some in (*each, claims) for found in tried(some)] or together


def _problem(
    subject: Subject, analysis: Analysis, claims: Sequence[Claim], kind: Freedom, random: np.random.Generator
) -> str:
    """Multiply inputs and initializers of a clone, run it, and say which output is not what it should be."""
    if folds := [gain for _, motion in claims for gain in motion.folds]:
        subject = _with_ones(subject, folds)
    powers = _powers(claims, kind, random)
    model = subject.model.clone()
    for name, held in _initializers(model).items():
        if name in powers and held.const_value is not None:
            held.const_value = ir.tensor(_multiplied(held.const_value.numpy(), name, analysis, powers), name=name)
    feeds = [_moved(feed, analysis, powers) for feed in subject.feeds]
    ulps = ULPS if kind is Freedom.SCALE else MIXED_ULPS
    for result, original in zip(_run(model, feeds), subject.results, strict=True):
        for name, value in _moved(original, analysis, powers).items():
            if problem := difference(result[name], value, ulps=ulps):
                return f"output {name!r} {problem}"
    return ""


def _with_ones(subject: Subject, gains: Sequence[ir.Value]) -> Subject:
    """Fold gains as a rotation asks for: what they become is another scale's business, so they are ones here."""
    model = subject.model.clone()
    for gain in gains:
        held = _initializers(model)[gain.name or ""]
        assert held.const_value is not None
        held.const_value = ir.tensor(np.ones_like(held.const_value.numpy()), name=held.name)
    return replace(subject, model=model, results=tuple(_run(model, subject.feeds)))


def _run(model: ir.Model, feeds: Sequence[Feed]) -> list[Feed]:
    with Session(model, level=Level.AS_WRITTEN, threads=1, draft=True) as session:
        return [session.run(feed) for feed in feeds]


def _initializers(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name or "": value for graph in model.graphs() for value in graph.initializers.values()}


def _powers(claims: Sequence[Claim], kind: Freedom, random: np.random.Generator) -> Powers:
    """Draw a matrix for each motion, and return its powers where the motion has them."""
    found: dict[str, dict[int, dict[tuple[int, ...], Array]]] = {}
    for dim, motion in claims:
        matrix = _matrix(kind, dim.size, random, keeps_mean=motion.keeps_mean)
        inverse = np.linalg.inv(matrix).T
        for (value, axis, path), power in motion.exponents.items():
            placed = found.setdefault(value.name or "", {}).setdefault(axis, {})
            factor = np.linalg.matrix_power(matrix if power > 0 else inverse, abs(power))
            placed[path] = factor @ placed[path] if path in placed else factor
    return found


def _matrix(kind: Freedom, size: int, random: np.random.Generator, *, keeps_mean: bool) -> Array:
    """Draw a diagonal of powers of two that differ, an orthogonal matrix, or any with a bounded condition number."""
    left, right = (np.linalg.qr(random.standard_normal((size, size)))[0] for _ in range(2))
    if kind is Freedom.ROTATE:
        return keeping_mean(left) if keeps_mean else left
    if kind is Freedom.LINEAR:
        return np.asarray(left * np.geomspace(CONDITION**-0.5, CONDITION**0.5, size) @ right)
    return np.diag(np.roll(np.resize([0.5, 2.0], size), random.integers(2)))


def _moved(feed: Feed, analysis: Analysis, powers: Powers) -> dict[str, object]:
    return {
        name: _multiplied(value, name, analysis, powers) if isinstance(value, np.ndarray) and name in powers else value
        for name, value in feed.items()
    }


def _multiplied(array: Array, name: str, analysis: Analysis, powers: Powers) -> Array:
    """Multiply an array along each axis that has something to move."""
    result = array.astype(np.float64)
    for axis, placed in powers[name].items():
        result = np.moveaxis(
            _product(_along(_axes(analysis, name)[axis], placed), np.moveaxis(result, axis, 0)), 0, axis
        )
    return result.astype(array.dtype)


def _product(matrix: Array, array: Array) -> Array:
    """Multiply an array from the left along its first axis; a diagonal keeps infinities where they are."""
    diagonal = np.diag(matrix)
    if np.array_equal(matrix, np.diag(diagonal)):
        return diagonal.reshape(-1, *[1] * (array.ndim - 1)) * array
    return np.asarray(np.tensordot(matrix, array, 1))


def _axes(analysis: Analysis, name: str) -> Sequence[Axis]:
    return next(axes for value, axes in analysis.facts.axes.items() if value.name == name and axes is not None)


def _along(axis: Axis, placed: Mapping[tuple[int, ...], Array], path: tuple[int, ...] = ()) -> Array:
    """Return the matrix of a whole axis, given those of the dimensions that move.

    >>> from bevel.ir.axes import total
    >>> half = Dim(1)
    >>> _along(total(half, half), {(1,): np.array([[3.0]])})
    array([[1., 0.],
           [0., 3.]])
    """
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return placed.get(path, np.eye(axis.size))
    if isinstance(axis, Product):
        factors = [_along(factor, placed, (*path, place)) for place, factor in enumerate(axis.factors)]
        return reduce(np.kron, factors, np.eye(1))
    return _blocks([_along(term, placed, (*path, place)) for place, term in enumerate(axis.terms)])


def _blocks(matrices: Sequence[Array]) -> Array:
    """Put square matrices along the diagonal of one."""
    sizes = [len(matrix) for matrix in matrices]
    whole = np.zeros((sum(sizes), sum(sizes)))
    for stop, matrix in zip(np.cumsum(sizes), matrices, strict=True):
        start = stop - len(matrix)
        whole[start:stop, start:stop] = matrix
    return whole
