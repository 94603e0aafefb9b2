"""Find mixtures of experts in a graph, and prove each by running it.

What the structure of a region suggests is only taken for a mixture if the description, worked out in numpy, gives what
the graph gives, on random rows and on random logits that take every expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, UnsupportedModel
from bevel.ir.piece import piece
from bevel.passes.base import Context, Runtime
from bevel.passes.mixtures.chains import Unlike
from bevel.passes.mixtures.description import KINDS, Gating, Mixture, Refused
from bevel.passes.mixtures.fused import Fused, fused
from bevel.passes.mixtures.members import Probe, experts_of
from bevel.passes.mixtures.reading import opened
from bevel.passes.mixtures.region import Region, ancestors, inline_branches, regions

Array = np.ndarray[Any, Any]
Source: TypeAlias = Fused | list[Region] | Unlike

# How far the description may be from the graph, relative to the largest output: sums in another order, three in a row.
NEAR: Final = 1e-4
# QMoE's kernel rounds what it multiplies to 8 bits, by row: half a step of 1/127 in two products, doubled.
COARSE: Final = 3e-2
# A factor of the gates that is this near a fraction of small numbers, as a share of those limits, is that fraction: it
# is a mean over all numbers of the output, and so far nearer than the worst of them.
SNAP: Final = 0.1
LARGEST_DENOMINATOR: Final = 64
LEAST_ROWS: Final = 32
BOOST: Final = 4.0
"""What is added to a logit so that a row surely takes that expert: logits are drawn from a standard normal."""


def mixtures(model: ir.Model, context: Context) -> tuple[list[Mixture], list[Refused]]:
    """Return the mixtures of experts in a model, in its order, and the choices that lead to none, with the reason."""
    seen = model.clone()
    inline_branches(seen)
    operators = dict(fused(model))
    sources: list[tuple[ir.Node, Source]] = [*operators.items(), *regions(seen)]
    search = _Search(model, seen, operators, [source for _, source in sources], context)
    found: list[Mixture] = []
    refused: list[tuple[ir.Node, str]] = []
    for node, source in sources:
        try:
            found.append(search.mixture(source))
        except (Unlike, EditRefused, UnsupportedModel) as why:
            refused.append((node, str(why)))
    return _outermost(model, found, refused)


def _outermost(
    model: ir.Model, found: Sequence[Mixture], refused: Sequence[tuple[ir.Node, str]]
) -> tuple[list[Mixture], list[Refused]]:
    """Leave out what is part of a larger mixture: an operator behind a router of its own, a sort of its rows."""
    inner = {id(each): _inside(each) for each in found}
    whole = [
        each
        for each in found
        if not any(other is not each and inner[id(each)] < inner[id(other)] for other in found)
    ]  # fmt: skip
    parts = {node.name for each in whole for node in inner[id(each)]}
    left = [Refused(f"{node.op_type} {node.name!r}", why) for node, why in refused if node.name not in parts]
    places = {value: place for place, value in enumerate(_values(model))}
    return sorted(whole, key=lambda each: places[each.output]), left


def _inside(mixture: Mixture) -> set[ir.Node]:
    return ancestors(mixture.output) - ancestors(mixture.logits) - ancestors(mixture.input)


class _Search:
    """A model, the same with its branches inlined, and some of its values on one input, for their sizes."""

    def __init__(
        self,
        model: ir.Model,
        seen: ir.Model,
        operators: Mapping[ir.Node, Fused | Unlike],
        sources: Sequence[Source],
        context: Context,
    ) -> None:
        self.model = model
        self.seen = seen
        self.runtime = context.runtime
        self.values = {value.name: value for value in _values(model)}
        self._operators = {node.name: each for node, each in operators.items()}
        self.sizes = _sizes(model, [name for source in sources for name in _read(source)], self.values, context)

    def mixture(self, source: Source) -> Mixture:
        """Return what a node leads to, or raise why that is no mixture."""
        if isinstance(source, Unlike):
            raise source
        if isinstance(source, Fused):
            made = replace(source.mixture, output=_after_factor(source.mixture.output))
            probe = _probe(self.model, made.input, made.logits, made.output, [], made.active, self.sizes, self.runtime)
            return replace(made, gating=_gating(made, probe, self.runtime, _limit(source)))
        region = _smallest(source, self.sizes)
        return self._region(region, _active(region))

    def _region(self, region: Region, active: int) -> Mixture:
        named = (region.input, region.logits, region.output, *region.others)
        given, logits, output, *others = (self.values[value.name] for value in named)
        output = _after_factor(output)
        probe = _probe(self.model, given, logits, output, others, active, self.sizes, self.runtime)
        if region.operator is not None:
            whole = self._operators[region.operator.name]
            if isinstance(whole, Unlike):
                raise whole
            made = replace(whole.mixture, input=given, logits=logits, output=output, active=active)
            return replace(made, gating=_gating(made, probe, self.runtime, _limit(whole)))
        found, activation, groups = experts_of(self.seen, region, probe, active, self.runtime)
        name, gating = region.choice.name or output.name or "", Gating("one", groups=groups)
        made = Mixture(name, region.form, given, logits, output, active, gating, tuple(found), activation)
        return replace(made, gating=_gating(made, probe, self.runtime, NEAR))


def _limit(source: Fused) -> float:
    return COARSE if source.rounded else NEAR


def _after_factor(value: ir.Value) -> ir.Value:
    """Return a value times the numbers that it is multiplied by before anything else reads it."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        ((node, _),) = value.uses()
        others = [each.const_value for each in node.inputs if each is not None and each is not value]
        if node.op_type != "Mul" or len(others) != 1 or others[0] is None or others[0].size != 1:
            break
        (value,) = node.outputs
    return value


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _read(source: Source) -> list[str]:
    """Return the names of the values whose sizes have to be known to run something."""
    if isinstance(source, Unlike):
        return []
    if isinstance(source, Fused):
        values = [source.mixture.input, source.mixture.logits, source.mixture.output]
    else:
        values = [each for region in source for each in (region.input, region.logits, region.output, *region.others)]
    return [value.name or "" for value in values]


def _sizes(
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


def _smallest(candidates: Sequence[Region], sizes: Mapping[str, Array]) -> Region:
    """Return the first region that gives values of the sizes that it reads."""
    for region in candidates:
        given, output = (sizes.get(value.name or "") for value in (region.input, region.output))
        if given is not None and output is not None and given.shape == output.shape:
            if region.input.dtype != ir.DataType.FLOAT:
                raise Unlike(f"it computes in {region.input.dtype}, not in FLOAT")
            return region
    raise Unlike(f"{candidates[-1].output.name!r} has other sizes than {candidates[0].input.name!r}, which it comes of")


def _active(region: Region) -> int:
    count = region.choice.inputs[1]
    if count is None or count.const_value is None:
        raise Unlike("how many it chooses is computed")
    return int(count.const_value.numpy().ravel()[0])


def _probe(
    model: ir.Model,
    given: ir.Value,
    logits: ir.Value,
    output: ir.Value,
    others: Sequence[ir.Value],
    active: int,
    sizes: Mapping[str, Array],
    runtime: Runtime,
) -> Probe:
    """Run a region on random rows, and on logits with which every expert is taken."""
    seen, experts = sizes[given.name or ""], sizes[logits.name or ""].shape[-1]
    shape = list(seen.shape)
    if not others:
        _lengthen(shape, given, max(LEAST_ROWS, 2 * experts))
    count = int(np.prod(shape[:-1]))
    if count * active < experts:
        raise Unlike(f"{count} rows cannot take all of {experts} experts: calibration inputs have to be longer")
    rng = np.random.default_rng(0)
    scale = max(float(np.sqrt(np.square(seen.astype(np.float64)).mean())), 1e-3)
    rows = (scale * rng.standard_normal((count, shape[-1]))).astype(np.float32)
    scores = rng.standard_normal((count, experts)).astype(np.float32)
    scores[np.arange(count), np.arange(count) % experts] += BOOST
    leading = [count] if sizes[logits.name or ""].ndim == 2 else shape[:-1]
    feed = {given.name or "": rows.reshape(shape), logits.name or "": scores.reshape(*leading, experts)}
    feed |= {value.name or "": sizes[value.name or ""] for value in others}
    source = opened(model, [given, logits, *others], [output])
    with runtime.open(source) as runs:
        answer = np.asarray(runs.run(feed)[output.name or ""])
    return Probe(rows, scores, feed, answer.reshape(count, -1))


def _lengthen(shape: list[int], given: ir.Value, least: int) -> None:
    """Let the last axis of rows that may have any size be so long that there are at least so many rows."""
    free = [axis for axis in range(len(shape) - 1) if given.shape is None or not isinstance(given.shape[axis], int)]
    rows = int(np.prod(shape[:-1]))
    if free and rows < least:
        shape[free[-1]] *= -(-least // max(rows, 1))


def _gating(made: Mixture, probe: Probe, runtime: Runtime, limit: float) -> Gating:
    """Return what gates count, by comparing with what the graph gives; raises `Unlike` if nothing gives that."""
    outputs = made.outputs(probe.rows, runtime).astype(np.float64)
    wanted = probe.output.astype(np.float64)
    found: list[tuple[float, Gating]] = []
    for kind in KINDS:
        answer = np.einsum("re,erc->rc", replace(made.gating, kind=kind).gates(probe.logits, made.active), outputs)
        scale = _snapped(float((answer * wanted).sum() / max(float(np.square(answer).sum()), 1e-30)), limit * SNAP)
        error = np.abs(scale * answer - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)
        found.append((float(error), replace(made.gating, kind=kind, scale=scale)))
    near = [gating for error, gating in found if error <= limit]
    if near:  # several where experts are equal: rather the one that needs no factor
        return min(near, key=lambda gating: gating.scale != 1.0)
    error, nearest = min(found, key=lambda pair: pair[0])
    raise Unlike(
        f"its output is {error:.2g} away from what its experts give by the nearest gates known ({nearest.kind})"
    )


def _snapped(number: float, near: float) -> float:
    """Return a fraction of small numbers that is so near, or the number.

    >>> _snapped(0.99999999, 1e-5), _snapped(1.3333334, 1e-5), _snapped(0.123456, 1e-5)
    (1.0, 1.3333333333333333, 0.123456)
    """
    found = float(Fraction(number).limit_denominator(LARGEST_DENOMINATOR))
    return found if abs(found - number) <= near * abs(number) else number
