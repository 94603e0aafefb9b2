"""The operation: tensors, layers, attributes, verification; anything that fails leaves the module as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from bevel.backends.torch.surgery import running
from bevel.backends.torch.surgery.attributes import choices, own_configurations
from bevel.backends.torch.surgery.journal import MISSING, Journal
from bevel.backends.torch.surgery.layers import claims, follow
from bevel.backends.torch.surgery.running import Call, Examples, call_of, call_of_feed
from bevel.backends.torch.surgery.search import Check, Failure, settle
from bevel.backends.torch.surgery.tensors import affected, local, planned_of, replace, state_of
from bevel.errors import EditRefused
from bevel.ir.plan import Plan
from bevel.ir.plan import plan as plan_of
from bevel.ir.plan_file import PlannedTensor
from bevel.ir.provenance import origin, provenance

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class AttributeChange:
    """An attribute of a module that followed a size."""

    module: str
    attribute: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}: {self.before} -> {self.after}".lstrip(".")


@dataclass(frozen=True)
class Surgery:
    """What was done to a module.

    `error` is the largest relative error of its outputs against the reference, NaN if nothing was run; `constant` says
    that those outputs hold one number each, so that hardly any error could show.
    """

    tensors: tuple[str, ...]
    attributes: tuple[AttributeChange, ...]
    error: float
    constant: bool = False

    def __str__(self) -> str:
        checked = "not verified" if math.isnan(self.error) else f"verified, error {self.error:.1g}"
        checked += " (the outputs are constant: hardly any error could show)" if self.constant else ""
        head = f"{len(self.tensors)} tensors and {len(self.attributes)} attributes changed; {checked}"
        return "\n".join([head, *(f"  {change}" for change in self.attributes)])


def operate(
    module: nn.Module,
    source: Plan | ir.Model,
    *,
    examples: Examples | None = None,
    feeds: Sequence[Mapping[str, Array]] = (),
    verify: bool = True,
) -> Surgery:
    """Do to a module what was done to a graph of it; see `bevel.apply`. `feeds` are the graph's inputs, made up."""
    plan = source if isinstance(source, Plan) else plan_of(source)
    state = state_of(module)
    planned = planned_of(plan, state)
    calls = [call_of(examples)] if examples is not None else [call_of_feed(module, feed) for feed in feeds]
    values = _taken(state, planned) if isinstance(source, Plan) else _values(source, state, planned)
    expected = _expected(module, source, planned, values, calls) if verify and calls else []
    check = partial(running.error, module, expected) if expected else None
    lost = _lost(module, source, planned)
    if lost and check is None:
        raise _missing(lost)
    with Journal() as journal:
        error = _operate(module, planned, values, check, journal)
        if isinstance(error, Failure):
            raise _refused(module, error, lost, plan)
    tensors = tuple(name for name, tensor in planned.items() if tensor.cuts)
    return Surgery(tensors, tuple(_changed(journal)), error, bool(expected) and running.are_constant(expected))


def _operate(
    module: nn.Module,
    planned: Mapping[str, PlannedTensor],
    values: Mapping[str, Tensor | Array],
    check: Check | None,
    journal: Journal,
) -> float | Failure:
    shapes = {name: tuple(tensor.shape) for name, tensor in state_of(module).items()}
    replace(module, values, journal)
    unknown: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    for place, part in affected(module, planned):
        if part in seen:
            continue
        seen.add(part)
        own = local(planned, place)
        found = claims(part, own)
        if found is None:
            unknown[place] = part
        else:
            follow(part, place, found, journal)
    sizes = own_configurations(module, choices(unknown, planned, shapes), journal)
    return settle(sizes, check, journal)


def _taken(state: Mapping[str, Tensor], planned: Mapping[str, PlannedTensor]) -> dict[str, Tensor | Array]:
    taken = _plan(planned).take(state)
    return {name: taken[name] for name, tensor in planned.items() if tensor.cuts}


def _values(
    model: ir.Model, state: Mapping[str, Tensor], planned: Mapping[str, PlannedTensor]
) -> dict[str, Tensor | Array]:
    """Return what the optimized graph holds of each parameter, in the parameter's layout."""
    found: dict[str, Tensor | Array] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            source = provenance(value)
            names = (str(value.name),) if source is None else source.names
            tensor = value.const_value
            if tensor is None or not any(name in planned for name in names):
                continue
            array = tensor.numpy() if source is None else source.invert(tensor.numpy())
            for name in (name for name in names if name in state):
                _same_shape(name, array, planned[name])
                found[name] = array
    return found


def _same_shape(name: str, array: Array, tensor: PlannedTensor) -> None:
    if array.shape != tensor.small_shape:
        raise EditRefused(
            f"the optimized model holds it as {list(array.shape)}, its plan leaves {list(tensor.small_shape)}",
            where=f"parameter {name!r}",
            remedy="a pass changed more than which channels there are: use bevel.to_torch(model)",
        )


def _expected(
    module: nn.Module,
    source: Plan | ir.Model,
    planned: Mapping[str, PlannedTensor],
    values: Mapping[str, Tensor | Array],
    calls: Sequence[Call],
) -> list[Call]:
    """Return the calls with their answers: the graph's, or with a plan the module's own with all else at zero."""
    if isinstance(source, ir.Model):
        return running.answers(source, module, calls)
    rest = {name: tensor for name, tensor in state_of(module).items() if name in planned and name not in values}
    full = _plan(planned).scatter({**values, **rest})
    with Journal() as journal:
        replace(module, {name: full[name] for name in values}, journal)
        expected = [Call(call.args, call.kwargs, running.outputs(module, call)) for call in calls]
        journal.restore()
    return expected


def _plan(planned: Mapping[str, PlannedTensor]) -> Plan:
    return Plan(tuple({id(tensor): tensor for tensor in planned.values()}.values()))


def _lost(module: nn.Module, source: Plan | ir.Model, planned: Mapping[str, PlannedTensor]) -> list[str]:
    """List the tensors of a module that its graph does not have, though they took part in what it computed."""
    if isinstance(source, Plan):
        return []
    known = origin(source)
    unused = known.unused if known else {}
    floats = (name for name, tensor in module.state_dict().items() if tensor.is_floating_point())
    return [name for name in floats if name not in planned and name not in unused]


def _missing(lost: Sequence[str]) -> EditRefused:
    return EditRefused(
        f"the optimized graph no longer has {_list(lost)}, and nothing is run that could show whether they still fit",
        where="the module",
        remedy="verify (with example_inputs), or optimize without `fold` and others that take tensors into others",
    )


def _refused(module: nn.Module, failure: Failure, lost: Sequence[str], plan: Plan) -> EditRefused:
    made = [tensor.names[0] for tensor in plan.changed if not tensor.parameter]
    notes = f"; the edits also changed what its forward makes itself: {_list(made)}" if made else ""
    notes += f"; the graph no longer has {_list(lost)}: passes put others in their place" if lost else ""
    return EditRefused(
        f"with the edits, {failure.text}{notes}",
        where=f"module {type(module).__name__}",
        remedy="the module was left as it was: where its forward has sizes written in, take them from tensors or "
        "attributes; or leave these groups out (skip=...), optimize without `fold`, or use bevel.to_torch(model)",
    )


# So many names are listed; the first few tell.
MOST_NAMED = 5


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _changed(journal: Journal) -> Iterator[AttributeChange]:
    """Yield which sizes and classes were set."""
    for write in journal.writes:
        after = getattr(write.owner, write.name)
        if isinstance(after, type):
            yield AttributeChange(write.place, "__class__", write.before.__name__, after.__name__)
        elif isinstance(after, int | tuple | list) and not write.name.startswith("_") and write.before is not MISSING:
            yield AttributeChange(write.place, write.name, write.before, after)
