"""What the passes on mixtures of experts have in common: which ones to work on, and the check of what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, PromiseBroken
from bevel.ir.names import Names
from bevel.ir.opset import raise_opset
from bevel.passes.base import REASSOCIATION_RTOL, Context, Outcome
from bevel.passes.experts.writing import RAISED
from bevel.passes.mixtures.beside import with_shared
from bevel.passes.mixtures.choosing import Routing
from bevel.passes.mixtures.description import Expert, Mixture, hidden
from bevel.passes.mixtures.recognition import mixtures
from bevel.passes.mixtures.rows import LAST, in_shape, rows_of
from bevel.passes.mixtures.usage import Usage, usages
from bevel.passes.mixtures.writing import dense, finish, mixed
from bevel.passes.patterns import asked

Array = np.ndarray[Any, Any]
Emit: TypeAlias = Callable[[ir.Model, Mixture, Names], None]

MOST_NAMED: Final = 8
# Rows on which what is written is compared with its description.
COMPARED: Final = 256


@dataclass(frozen=True, eq=False)
class Change:
    """What a mixture becomes: experts with a routing to them, one layer if that is None; `said` is for the report."""

    usage: Usage
    experts: tuple[Expert, ...]
    routing: Routing | None
    said: str

    @property
    def mixture(self) -> Mixture:
        """The mixture as it is."""
        return self.usage.mixture

    @property
    def numbers(self) -> int:
        """How many parameters the experts have, the shared one included."""
        shared = None if self.routing is None else self.mixture.shared
        return sum(expert.numbers for expert in self.experts) + (0 if shared is None else shared.numbers)

    def write(self, model: ir.Model, mixture: Mixture, names: Names) -> None:
        """Write it in the place of the mixture, in the model or in a part of it."""
        if self.routing is None:
            dense(model, mixture, self.experts[0], names)
        else:
            mixed(model, mixture, self.experts, self.routing, names)

    def outputs(self, rows: Array, logits: Array, context: Context) -> Array:
        """Return what it gives for rows of what the mixture reads."""
        mixture = self.mixture
        found = hidden(self.experts, mixture.activation, rows, context.runtime)
        each = [
            entries @ expert.down + expert.constant
            for entries, expert in zip(found, self.experts, strict=True)
        ]  # fmt: skip
        if self.routing is None:
            return each[0]
        routed = np.einsum("re,erc->rc", self.routing.gates(mixture, logits), np.stack(each))
        return np.asarray(routed + mixture.always(rows, context.runtime))

    def error(self, context: Context) -> float:
        """Return how far it is from the mixture on the calibration data, relative to what that gives."""
        usage = self.usage.some()
        routed = np.einsum("re,erc->rc", usage.gates, self.mixture.outputs(usage.rows, context.runtime))
        wanted = routed + self.mixture.always(usage.rows, context.runtime)
        found = self.outputs(usage.rows, usage.logits, context)
        return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


class Step(Protocol):
    """A pass on mixtures: its name, which mixtures it takes, and over how many inputs it gathers statistics."""

    @property
    def name(self) -> str: ...  # noqa: D102 - said above
    @property
    def samples(self) -> int: ...  # noqa: D102
    @property
    def only(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def skip(self) -> tuple[str, ...]: ...  # noqa: D102


def rewrite(
    step: Step,
    model: ir.Model,
    context: Context,
    decide: Callable[[Usage, Context], Change],
    became: str,
    *,
    shared: bool = False,
) -> Outcome:
    """Find the mixtures, decide what each becomes, check that, and write it; `became` is for the report.

    With `shared`, the layer that stands beside a mixture and that every row takes is part of it.
    """
    context = replace(context, samples=step.samples)
    raised = (RAISED,) * raise_opset(model)
    wanted, left = _to_work_on(model, context, step.name, step.only, step.skip)
    if shared:
        whole = [with_shared(model, each, context) for each in wanted]
        wanted, left = [each for each, _ in whole], [*left, *(why for _, why in whole if why)]
    found = usages(model, wanted, context)
    changes = [decide(usage, context) for usage in found]
    _carry_out(model, changes, context, step.name)
    return Outcome(notes=(f"{len(changes)} mixtures of experts {became}", *_told(changes, context), *raised, *left))


def _to_work_on(
    model: ir.Model, context: Context, name: str, only: Sequence[str], skip: Sequence[str]
) -> tuple[list[Mixture], list[str]]:
    """Return the mixtures of a model that are asked for, and why others are left alone."""
    found, refused = mixtures(model, context)
    left = [f"left alone: {each}" for each in refused[:MOST_NAMED]]
    wanted = [each for each in found if asked({each.name, each.output.name or ""}, only, skip)]
    if not wanted:
        told = [f"not asked for: {each.name}" for each in found]
        raise EditRefused(
            "there is no mixture of experts to work on",
            where=name,
            remedy="; ".join([*told, *left]) or "it takes a router that chooses among experts of two layers",
        )
    return wanted, left


def _carry_out(model: ir.Model, changes: Sequence[Change], context: Context, name: str) -> None:
    """Check each change on a part of the model, then write all; raises `PromiseBroken` before the first write."""
    for change in changes:
        _check(model, change, context, name)
    names = Names(model)
    for change in reversed(changes):  # what an earlier mixture gives may be what a later one reads
        change.write(model, change.mixture, names)
    finish(model)


def _check(model: ir.Model, change: Change, context: Context, name: str) -> None:
    """Raise `PromiseBroken` if the nodes to be written do not compute what they are said to."""
    mixture, rows = change.mixture, change.usage.rows[:COMPARED]
    logits = change.usage.logits[:COMPARED]
    part, twin = _alone(model, mixture)
    change.write(part, twin, Names(part))
    finish(part)
    arrays = {
        twin.input: _shaped(rows, mixture.input, mixture.axis),
        twin.logits: _shaped(logits, mixture.logits, LAST),
    }
    given = {value.name or "": arrays[value] for value in part.graph.inputs}
    with context.runtime.open(part) as runs:
        (answer,) = runs.run(given).values()
    wanted = change.outputs(rows, logits, context)
    error = np.abs(rows_of(answer, mixture.axis) - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)
    if not error <= REASSOCIATION_RTOL:
        raise PromiseBroken(
            f"what is written is {error:.2g} away from what it should give (at most {REASSOCIATION_RTOL:.2g})",
            where=f"{name}: {mixture.name}",
            remedy="skip this mixture",
        )


def _alone(model: ir.Model, mixture: Mixture) -> tuple[ir.Model, Mixture]:
    """Return a graph that takes what a mixture reads, any number of rows, and a mixture there to be replaced."""
    given, logits = (
        ir.Value(name=name, type=value.type, shape=_open(value, axis))
        for name, value, axis in (("rows", mixture.input, mixture.axis), ("logits", mixture.logits, LAST))
    )
    place = ir.node("Identity", [given], name="place")
    output = place.outputs[0]
    output.name, output.type, output.shape = "output", mixture.output.type, _open(mixture.output, mixture.axis)
    graph = ir.Graph([given, logits], [output], nodes=[place], opset_imports=model.graph.opset_imports, name="alone")
    part = ir.Model(graph, ir_version=model.ir_version)
    return part, replace(mixture, input=given, logits=logits, output=output)


def _open(value: ir.Value, axis: int) -> ir.Shape | None:
    """Return the shape of a value with any number of rows."""
    if value.shape is None:
        return None
    channels = axis % len(value.shape)
    return ir.Shape([size if place == channels else None for place, size in enumerate(value.shape)])


def _shaped(rows: Array, value: ir.Value, axis: int) -> Array:
    """Return rows in the rank of a value, all of them along one axis."""
    rank = 2 if value.shape is None else len(value.shape)
    return in_shape(rows, (*(1,) * (rank - 2), len(rows)), axis)


def _told(changes: Sequence[Change], context: Context) -> Iterator[str]:
    """Say what became of each mixture, how far it is from what it was, and how many parameters it has."""
    before = sum(change.mixture.numbers for change in changes)
    after = sum(change.numbers for change in changes)
    yield f"{after:,} of {before:,} parameters of experts are left"
    errors = [change.error(context) for change in changes]
    yield f"relative error of what mixtures give, on average: {np.mean(errors):.3g}"
    for change, error in list(zip(changes, errors, strict=True))[:MOST_NAMED]:
        far = "the same function" if error <= REASSOCIATION_RTOL else f"relative error {error:.3g}"
        yield f"{change.mixture.name}: {change.said}; {far}"


def count_of(there: int, ratio: float, asked_for: int | None) -> int:
    """Return how many experts there are to be, at least one.

    >>> count_of(8, 0.5, None), count_of(8, 0.5, 3), count_of(8, 1.0, None), count_of(4, 0.0, 8)
    (4, 3, 1, 4)
    """
    if asked_for is not None:
        return min(asked_for, there)
    return max(1, there - round(there * ratio))
