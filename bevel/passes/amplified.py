"""A second look at what multiplies roundings: whether rounding explains an error, and whether that is all there is.

A promise is about sums in another order: what leaves a layer moves by its tolerance at most. A network whose answers
move by `s` where its inputs and weights move by one unit in the last place multiplies that by `s` / unit. A larger
error is a mistake. A smaller one may be one too, and only a comparison in pieces tells.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import onnx_ir as ir

from bevel.errors import UnsupportedModel
from bevel.ir.places import Places
from bevel.passes.base import Masked, Preserving
from bevel.passes.pieces import Pieces, compare_in_pieces
from bevel.passes.rounding import leave_out_rounding
from bevel.passes.sensitivity import sensitivity
from bevel.passes.verify import Amplified, Observation, Verdict

COUNTS: Final = (8, 32, 128)
"""Into how many pieces a graph is cut: few show more of how they play together, many multiply less."""


def apart_from_amplification(
    verdict: Verdict,
    expected: Observation,
    reference: ir.Model,
    result: ir.Model,
    feeds: Iterable[Mapping[str, Any]],
    where: Places | None,
) -> Verdict:
    """Where a promise about sums is broken, see how sensitive the reference is, and compare in pieces if that explains.

    `expected` is what `reference` answered to `feeds`; `where` says which entries of its values are left in `result`,
    None where that cannot be said. Gives the verdict back with what was found.
    """
    if verdict.kept or not isinstance(verdict.promise, Preserving | Masked):
        return verdict
    feeds = list(feeds)
    try:
        found = replace(verdict, amplified=Amplified(sensitivity(reference, feeds, expected)))
    except UnsupportedModel:  # weights that are moved may be refused: then nothing is excused
        return verdict
    if where is None or not all(map(found.explained, found.broken)):
        return found
    return replace(found, amplified=_in_pieces(found, reference, result, feeds, where))


def _in_pieces(
    found: Verdict, reference: ir.Model, result: ir.Model, feeds: Iterable[Mapping[str, Any]], where: Places
) -> Amplified | None:
    """Look for a number of pieces in which the promise holds; where quantized activations are rounded, without that."""
    assert found.amplified is not None
    if found.unrounded is not None:
        where = _by_name(result, where)
        reference, result = reference.clone(), result.clone()
        leave_out_rounding(reference)
        leave_out_rounding(result)
    try:
        for count in COUNTS:
            pieces = compare_in_pieces(reference, result, feeds, where, count)
            if _holds(found, pieces):
                return Amplified(found.amplified.moves, pieces.count, pieces.error)
    except UnsupportedModel:  # what the whole can run, a piece may not
        pass
    return found.amplified


def _by_name(model: ir.Model, where: Places) -> Places:
    """Let what is known of a model's values be asked with those of a copy."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    return lambda value: where(values[value.name]) if value.name in values else None


def _holds(verdict: Verdict, pieces: Pieces) -> bool:
    """Tell whether every piece is as promised: at its cut, and at the outputs."""
    units = {deviation.output: deviation.epsilon for deviation in verdict.outputs}
    outputs = tuple(replace(deviation, epsilon=units[deviation.output]) for deviation in pieces.outputs)
    limit = min(map(verdict.limit, verdict.outputs))
    return pieces.count > 1 and pieces.error <= limit and replace(verdict, outputs=outputs).kept
