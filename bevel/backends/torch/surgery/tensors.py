"""A module's parameters and buffers: by name, with every place that holds each, and new ones in their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevel.backends.torch.surgery.journal import Journal
from bevel.backends.torch.types import to_tensor
from bevel.errors import EditRefused, UsageError
from bevel.ir.plan import Plan
from bevel.ir.plan_file import PlannedTensor


@dataclass(frozen=True)
class Place:
    """A module that holds a tensor, and under which name."""

    owner: nn.Module
    name: str


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, those that no `state_dict` holds and every name of a tied one too."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def places_of(module: nn.Module) -> dict[Tensor, list[Place]]:
    """Return where each tensor is held; a tied one is held in several places."""
    found: dict[Tensor, list[Place]] = {}
    for owner in module.modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                found.setdefault(tensor, []).append(Place(owner, name))
    return found


def planned_of(plan: Plan, state: Mapping[str, Tensor]) -> dict[str, PlannedTensor]:
    """Return the plan's tensors under every name they have in a module.

    Raises `UsageError` for a module of another architecture, and for a plan that knows no parameters.
    """
    own = [tensor for tensor in plan.tensors if tensor.parameter or any(name in state for name in tensor.names)]
    if not own:
        raise UsageError(
            "the plan knows no parameter of the module: it was made of a model that did not come from a module",
            remedy="load the model with bevel.load(module, example_inputs) and optimize that",
        )
    Plan(tuple(own)).check(state)
    by_tensor: dict[Tensor, PlannedTensor] = {}
    for name, planned in ((name, tensor) for tensor in own for name in tensor.names if name in state):
        first = by_tensor.setdefault(state[name], planned)
        if not first.same(planned):
            raise EditRefused(
                f"it is tied to {first.names[0]!r} in the module, but the plan takes something else of that",
                where=f"parameter {name!r}",
                remedy="untie them in the module, or leave one of the groups out (skip=...)",
            )
    return {name: by_tensor[tensor] for name, tensor in state.items() if tensor in by_tensor}


def replace(module: nn.Module, values: Mapping[str, Tensor | np.ndarray[Any, Any]], journal: Journal) -> None:
    """Put new tensors in the places of old ones: a tied one stays one object, trained or not as it was."""
    state, places = state_of(module), places_of(module)
    done: set[Tensor] = set()
    for name, value in values.items():
        old = state[name]
        if old in done:
            continue
        done.add(old)
        new = _like(old, value)
        for place in places[old]:
            journal.set(place.owner, place.name, new)


def _like(old: Tensor, value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Return a value as a tensor of the same kind as an old one, in memory of its own: graphs share the old one's."""
    data = value if isinstance(value, Tensor) else to_tensor(value)
    data = data.detach().to(old.device, old.dtype).clone(memory_format=torch.contiguous_format)
    if not isinstance(old, nn.Parameter):
        return data
    new = nn.Parameter(data, requires_grad=old.requires_grad)
    vars(new).update(vars(old))  # such as marks that optimizers read
    return new


def local(planned: Mapping[str, PlannedTensor], place: str) -> dict[str, PlannedTensor]:
    """Return the planned tensors that a module itself holds, under its own names."""
    prefix = f"{place}." if place else ""
    names = ((name, name.removeprefix(prefix)) for name in planned if name.startswith(prefix))
    return {own: planned[name] for name, own in names if "." not in own}


def affected(module: nn.Module, planned: Mapping[str, PlannedTensor]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that hold, themselves or below, a tensor of which something was taken."""
    changed = [name for name, tensor in planned.items() if tensor.cuts]
    for place, part in module.named_modules(remove_duplicate=False):
        if not place or any(name.startswith(f"{place}.") for name in changed):
            yield place, part
