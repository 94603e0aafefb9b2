"""Mixtures run on random rows, and on logits with which every expert is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.piece import piece
from bevel.passes.base import Context, Runtime
from bevel.passes.mixtures.chains import Unlike
from bevel.passes.mixtures.description import Mixture
from bevel.passes.mixtures.reading import opened
from bevel.passes.mixtures.rows import LAST, in_shape, leading, rows_of

Array = np.ndarray[Any, Any]

# How far the description may be from the graph, relative to the largest output: sums in another order, three in a row.
NEAR: Final = 1e-4
# QMoE's kernel rounds what it multiplies to 8 bits, by row: half a step of 1/127 in two products, doubled.
COARSE: Final = 3e-2
LEAST_ROWS: Final = 32
BOOST: Final = 4.0
"""What is added to a logit so that a row surely takes that expert: logits are drawn from a standard normal."""


def limit_of(mixture: Mixture) -> float:
    """Return how far a description may be from the graph."""
    return COARSE if mixture.rounded else NEAR


@dataclass(frozen=True, eq=False)
class Ends:
    """Where a mixture begins and ends: what it reads, `others` for sizes, and what it gives, channels along `axis`."""

    input: ir.Value
    logits: ir.Value
    output: ir.Value
    active: int
    others: tuple[ir.Value, ...] = ()
    axis: int = LAST


@dataclass(frozen=True, eq=False)
class Probe:
    """Random rows `[rows, channels]` and logits `[rows, experts]`, `feed` as a region takes them, what it gives."""

    rows: Array
    logits: Array
    feed: Mapping[str, Array]
    output: Array


def sizes_of(
    model: ir.Model, names: Sequence[str], values: Mapping[str | None, ir.Value], context: Context
) -> dict[str, Array]:
    """Run the model on one input, and return some of its values."""
    wanted = list(dict.fromkeys(name for name in names if name in values))
    if not wanted:
        return {}
    feed = next(iter(context.calibration.samples(1)))
    made = [name for name in wanted if not values[name].is_graph_input()]
    source = piece(model, list(model.graph.inputs), [values[name] for name in made])
    with context.runtime.open(source) as runs:
        answers = runs.run(feed)
    return {name: np.asarray(answers[name] if name in answers else feed[name]) for name in wanted}


def probed(model: ir.Model, ends: Ends, sizes: Mapping[str, Array], runtime: Runtime) -> Probe:
    """Run what is between the ends on random rows; `sizes` are all values on one input."""
    seen, experts = sizes[ends.input.name or ""], sizes[ends.logits.name or ""].shape[-1]
    shape = leading(seen.shape, ends.axis)
    if not ends.others:
        _lengthen(shape, ends, max(LEAST_ROWS, 2 * experts))
    count = int(np.prod(shape))
    if count * ends.active < experts:
        raise Unlike(f"{count} rows cannot take all of {experts} experts: calibration inputs have to be longer")
    rng = np.random.default_rng(0)
    scale = max(float(np.sqrt(np.square(seen.astype(np.float64)).mean())), 1e-3)
    rows = (scale * rng.standard_normal((count, seen.shape[ends.axis]))).astype(np.float32)
    scores = rng.standard_normal((count, experts)).astype(np.float32)
    scores[np.arange(count), np.arange(count) % experts] += BOOST
    flat = sizes[ends.logits.name or ""].ndim == 2
    feed = {ends.input.name or "": in_shape(rows, shape, ends.axis)}
    feed |= {ends.logits.name or "": scores.reshape(*([count] if flat else shape), experts)}
    feed |= {value.name or "": sizes[value.name or ""] for value in ends.others}
    source = opened(model, [ends.input, ends.logits, *ends.others], [ends.output])
    with runtime.open(source) as runs:
        answer = np.asarray(runs.run(feed)[ends.output.name or ""])
    found = rows_of(answer, ends.axis)
    return Probe(rows, scores, feed, found if len(found) == count else answer.reshape(count, -1))


def _lengthen(shape: list[int], ends: Ends, least: int) -> None:
    """Let the last axis of rows that may have any size be so long that there are at least so many rows."""
    given = ends.input.shape
    known = [None] * len(shape) if given is None else leading(list(given), ends.axis)
    free = [axis for axis, size in enumerate(known) if not isinstance(size, int)]
    rows = int(np.prod(shape))
    if free and rows < least:
        shape[free[-1]] *= -(-least // max(rows, 1))
