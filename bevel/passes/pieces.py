"""Proof by pieces: a network that multiplies roundings is compared part by part, each on the reference's own values.

The result is cut at some places. Behind each, it computes on with what the reference has there instead of what it has
itself, so that no rounding is handed on; and what it has there itself is compared with that. If all parts agree on the
same inputs then so do the wholes, but for rounding. Nothing is trusted: a wrong belief about which entries of a value
are left shows as a difference at that very place.

At a cut, errors are measured against each entry's own magnitude, or that below which nine of ten entries are where it
is smaller. A difference that is set right again must not hide behind a few large entries.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.backends.coded import Decoded
from bevel.backends.onnxruntime import Level, Session
from bevel.ir.edit import gathered
from bevel.ir.piece import uses
from bevel.ir.places import Kept, Places
from bevel.passes.deviation import Deviation, deviate
from bevel.passes.rounding import resolutions

Array = np.ndarray[Any, Any]
FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
GIVEN: Final = "{}.given"
USUAL: Final = 0.9
"""Of the magnitudes of a value's entries, the share that is below what errors are measured against at least."""


@dataclass(frozen=True)
class Pieces:
    """A comparison in pieces: how many, the largest error at a cut, and how far the outputs are from the reference's.

    `outputs` are those of the last piece, which is given the reference's values like all others.
    """

    count: int
    error: float
    outputs: tuple[Deviation, ...]


@dataclass(frozen=True)
class Cut:
    """A place between two nodes, with the values that cross it and where their entries stand in the reference."""

    crossing: Mapping[str, Kept]


def compare_in_pieces(
    reference: ir.Model, result: ir.Model, feeds: Iterable[Mapping[str, Any]], where: Places, count: int
) -> Pieces:
    """Compare `result` with `reference` in up to `count` pieces; see above. Fewer where too little is known.

    Raises `UnsupportedModel` where a piece does not run.
    """
    cuts = _spread(possible_cuts(result, reference, where), count)
    kept = {name: kept for cut in cuts for name, kept in cut.crossing.items()}
    names = [value.name or "" for value in reference.graph.outputs]
    expected: list[Mapping[str, Any]] = []
    found: list[Mapping[str, Any]] = []
    worst = 0.0
    with (
        Session(_telling(reference, kept), level=Level.AS_WRITTEN) as whole,
        Session(_told(result, kept), level=Level.AS_WRITTEN) as parts,
    ):
        truth, pieces = Decoded(whole, reference), Decoded(parts, result)
        for feed in feeds:
            answers = truth.run(feed)
            given = {name: np.asarray(gathered(answers[name], kept[name]), order="C") for name in kept}
            got = pieces.run({**feed, **{GIVEN.format(name): array for name, array in given.items()}})
            worst = max(worst, *(apart(array, got[name]) for name, array in given.items()), 0.0)
            expected.append({name: answers[name] for name in names})
            found.append({name: got[name] for name in names})
    coarse = resolutions(reference)
    outputs = (
        deviate(name, [each[name] for each in expected], [each[name] for each in found], coarse.get(name, 0.0))
        for name in names
    )
    return Pieces(len(cuts) + 1, worst, tuple(outputs))


def possible_cuts(model: ir.Model, reference: ir.Model, where: Places) -> list[Cut | None]:
    """Return what a cut before each node would be, None where it cannot be made.

    It can be where every float that crosses it is known to the reference by name, and its entries to `where`. Integers
    cross a cut as the result has them, and what is computed from weights alone is part of every piece.
    """
    nodes = list(model.graph)
    known = {value.name for node in reference.graph for value in node.outputs}
    last = {value: place for place, node in enumerate(nodes) for value in uses(node)}
    fixed: set[ir.Node] = set()
    alive: dict[ir.Value, Kept | None] = {}
    cuts: list[Cut | None] = []
    for place, node in enumerate(nodes):
        alive = {value: kept for value, kept in alive.items() if last[value] >= place}
        cuts.append(_cut(alive))
        if all(value.is_initializer() or value.producer() in fixed for value in uses(node)):
            fixed.add(node)
            continue
        for value in node.outputs:
            if value in last and (value.dtype is None or value.dtype in FLOATS):
                alive[value] = where(value) if value.dtype is not None and value.name in known else None
    return cuts


def _cut(alive: Mapping[ir.Value, Kept | None]) -> Cut | None:
    crossing = {value.name or "": kept for value, kept in alive.items() if kept is not None}
    return Cut(crossing) if alive and len(crossing) == len(alive) else None


def _spread(cuts: Sequence[Cut | None], count: int) -> list[Cut]:
    """Choose cuts at about equal distances, each where the fewest values cross."""
    edges = np.linspace(0, len(cuts), count + 1)
    half = len(cuts) / count / 2
    near = (cuts[max(int(edge - half), 0) : int(edge + half) + 1] for edge in edges[1:-1])
    able = ([cut for cut in part if cut is not None] for part in near)
    chosen = [min(part, key=lambda cut: len(cut.crossing)) for part in able if part]
    return list({tuple(cut.crossing): cut for cut in chosen}.values())


def _telling(model: ir.Model, kept: Mapping[str, Kept]) -> ir.Model:
    """Return a copy that gives out the values that cross cuts as well."""
    copy = model.clone()
    copy.graph.outputs.extend(value for value in _made(copy) if value.name in kept and not value.is_graph_output())
    return copy


def _told(model: ir.Model, kept: Mapping[str, Kept]) -> ir.Model:
    """Return a copy that computes on from values that it is given, and gives out its own."""
    copy = model.clone()
    for value in [value for value in _made(copy) if value.name in kept]:
        rank = None if value.shape is None else ir.Shape([None] * len(value.shape))
        given = ir.Value(name=GIVEN.format(value.name), type=value.type, shape=rank)
        copy.graph.inputs.append(given)
        for node, index in tuple(value.uses()):
            node.replace_input_with(index, given)
        if not value.is_graph_output():
            copy.graph.outputs.append(value)
    return copy


def _made(model: ir.Model) -> Iterator[ir.Value]:
    return (value for node in model.graph for value in node.outputs)


def apart(expected: Array, got: Array) -> float:
    """Return the largest error of an entry, relative to its own magnitude or the usual one, whichever is larger.

    >>> many = np.array([1e4] + 20 * [1.0])
    >>> apart(many, many + 0.01)  # relative to the largest it were 1e-6
    0.01
    """
    if expected.shape != got.shape:
        return float("inf")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differ.any():
        return 0.0
    sizes = np.abs(a)
    real = sizes[np.isfinite(sizes) & (sizes > 0)]
    usual = np.quantile(real, USUAL) if real.size else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.abs(a - b)[differ] / np.maximum(sizes[differ], usual)
    return round(float(np.nan_to_num(errors, nan=np.inf).max()), 12)
