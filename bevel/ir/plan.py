"""A plan: which places of which tensor were kept, in which order.

Edits leave on every initializer what they took of it (`bevel.ir.record`). A plan gathers that under the parameters' own
names and in their own layout, so that it can be applied to another checkpoint, read by people, and undone.

    plan = bevel.plan(model)                   # after bevel.optimize
    plan.save("plan.json")
    small = Plan.load("plan.json").take(checkpoint)
    full = plan.scatter(small, into=checkpoint)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, UsageError
from bevel.ir import plan_file
from bevel.ir.plan_file import PlannedTensor
from bevel.ir.provenance import Provenance, provenance
from bevel.ir.record import MIXED, Cut, cuts


@dataclass(frozen=True)
class Plan:
    """What was taken of a network's tensors.

    `tensors` lists every parameter and buffer that the model has, unchanged ones too, so that a checkpoint of another
    network is recognised. Tensors are arrays or whatever can be indexed like them, torch tensors included.
    """

    tensors: tuple[PlannedTensor, ...]

    @property
    def changed(self) -> tuple[PlannedTensor, ...]:
        """The tensors of which something was taken."""
        return tuple(tensor for tensor in self.tensors if tensor.cuts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the same plan gives the same bytes, and the file appears complete or not at all."""
        plan_file.save(self.tensors, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote. Raises `UsageError` if the file is none."""
        return Plan(plan_file.load(path))

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise `UsageError`, naming the tensors, unless `state` has every tensor of the plan in its original shape."""
        wrong = [text for tensor in self.tensors for text in _mismatches(tensor, state, tensor.shape)]
        _refuse(wrong, "the tensors are not those the plan was made of")

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint of the same architecture with everything taken that the plan takes.

        Tensors that the plan does not name are passed on as they are; so are those that it leaves whole.
        """
        self.check(state)
        cuts_of = {name: tensor.cuts for tensor in self.tensors for name in tensor.names}
        return {name: _take(value, cuts_of.get(name, {})) for name, value in state.items()}

    def scatter(self, small: Mapping[str, Any], into: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Put the values of a small checkpoint back at their original places: the way back of `take`.

        The other places hold zero, or what `into`, a full checkpoint, has there.
        """
        wrong = [text for tensor in self.tensors for text in _mismatches(tensor, small, tensor.small_shape)]
        _refuse(wrong, "the tensors are not those that the plan leaves")
        if into is not None:
            self.check(into)
        planned = {name: tensor for tensor in self.tensors for name in tensor.names}
        return {
            name: _scatter(value, planned[name], None if into is None else into.get(name)) if name in planned else value
            for name, value in small.items()
        }

    def __str__(self) -> str:
        head = f"{len(self.changed)} of {len(self.tensors)} tensors changed"
        return "\n".join([head, *(line for tensor in self.changed for line in _lines(tensor))])


def plan(model: ir.Model) -> Plan:
    """Return what was taken of the tensors of a model since it was loaded.

    Tensors go by the names of the parameters that they came from, in the layout that those have; initializers of which
    that is not known go by their own name. Raises `EditRefused` where copies of one parameter went separate ways.
    """
    found: dict[str, PlannedTensor] = {}
    for value in _initializers(model):
        tensor = _planned(value)
        if tensor is None:
            continue
        first = found.setdefault(tensor.names[0], tensor)
        if first is not tensor and not first.same(tensor):
            raise EditRefused(
                f"the model holds it more than once, and what was taken differs: {_taken(first)}; {_taken(tensor)}",
                where=f"parameter {tensor.names[0]!r}",
                remedy="a plan keeps one set of places for each parameter: leave these groups out (skip=...)",
            )
    return Plan(tuple(found[name] for name in sorted(found)))


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _planned(value: ir.Value) -> PlannedTensor | None:
    """Return what is known of an initializer; None for a constant without a source of which nothing was taken."""
    if MIXED in value.meta:
        raise EditRefused(
            "its places were reordered along one axis in another way for each place of another",
            where=f"initializer {value.name!r}",
            remedy="a plan takes whole places of axes: give all heads one order (per-head=false)",
        )
    source, taken = provenance(value), cuts(value)
    if value.const_value is None or value.name is None or (source is None and not taken):
        return None
    sizes = value.const_value.shape.numpy()
    original = [taken[axis].size if axis in taken else size for axis, size in enumerate(sizes)]
    if source is None:
        return PlannedTensor((value.name,), tuple(original), dict(taken), parameter=False)
    shape, own = _own_layout(source, original, taken)
    return PlannedTensor(source.names, shape, own, parameter=True)


def _own_layout(
    source: Provenance, shape: Sequence[int], taken: Mapping[int, Cut]
) -> tuple[tuple[int, ...], dict[int, Cut]]:
    """Return the shape and cuts of an initializer along the axes of its parameter."""
    places = {axis: source.axis(axis, len(shape)) for axis in range(len(shape))}
    # Axes that a transform took away have one place.
    rank = source.parameter_rank(len(shape))
    sizes = [1] * rank
    for axis, place in places.items():
        if place is not None:
            sizes[place] = shape[axis]
    own = {place: taken[axis] for axis, place in places.items() if axis in taken and place is not None}
    return tuple(sizes), dict(sorted(own.items()))


def _mismatches(tensor: PlannedTensor, state: Mapping[str, Any], shape: Sequence[int]) -> Iterator[str]:
    present = [name for name in tensor.names if name in state]
    if not present and tensor.parameter:
        yield f"{tensor.names[0]!r} is missing"
    for name in present:
        if tuple(state[name].shape) != tuple(shape):
            yield f"{name!r} is {list(state[name].shape)}, the plan has {list(shape)}"


# So many wrong tensors are named; the first few tell.
MOST_NAMED = 5


def _refuse(wrong: Sequence[str], what: str) -> None:
    if wrong:
        more = f", and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise UsageError(
            f"{what}: {'; '.join(wrong[:MOST_NAMED])}{more}",
            remedy="a plan fits checkpoints of the architecture that it was made of; print(plan) lists its tensors",
        )


def _take(value: Any, taken: Mapping[int, Cut]) -> Any:
    for axis, cut in taken.items():
        value = value[(slice(None),) * axis + (cut.kept,)]
    return value


def _scatter(value: Any, tensor: PlannedTensor, into: Any) -> Any:
    if not tensor.cuts:
        return value
    full = _full(value, tensor.shape) if into is None else _copy(into)
    places = [
        tensor.cuts[axis].kept if axis in tensor.cuts else np.arange(size) for axis, size in enumerate(tensor.shape)
    ]
    full[np.ix_(*places)] = value
    return full


def _full(value: Any, shape: Sequence[int]) -> Any:
    return np.zeros(shape, value.dtype) if isinstance(value, np.ndarray) else value.detach().new_zeros(tuple(shape))


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value.detach().clone()


def _lines(tensor: PlannedTensor) -> Iterator[str]:
    yield f"  {' = '.join(tensor.names)}  {list(tensor.shape)} -> {list(tensor.small_shape)}"
    for axis, cut in tensor.cuts.items():
        structure = "; ".join(f"{change.text('before')} -> {change.text('after')}" for change in cut.changes)
        yield f"    axis {axis}: {structure}; places {plan_file.short(cut.kept)}"


def _taken(tensor: PlannedTensor) -> str:
    texts = [f"axis {axis}: {plan_file.short(cut.kept)}" for axis, cut in tensor.cuts.items()]
    return ", ".join(texts) or "nothing"
