"""A model whose chosen channels and heads are trained: the module for it, what it has learnt, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.ir.cost import cost
from bevel.ir.edit import permute
from bevel.modules import backend, check, feeds_of
from bevel.selection.adapter import Adapter, Delta, checksum
from bevel.selection.slices import Slice

if TYPE_CHECKING:
    from bevel.backends.torch import GraphModule

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Selection:
    """What `select_finetune` gives.

    `module` is what is trained: its only parameters with gradients are the slices. `orders` say how it has its groups
    ordered, by their names in the model that was given, `base`; `slices` what is trained, by the parameters' names.
    """

    module: GraphModule
    orders: Mapping[str, Array]
    base: ir.Model
    slices: Mapping[str, Slice]
    feeds: Sequence[Mapping[str, Any]]

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(len(part.index) * len(part.other) for part in self.slices.values())

    def adapter(self) -> Adapter:
        """Return a copy of what the module has learnt so far."""
        found = backend("slices").contents(self.module, self.slices)
        return Adapter(tuple(self._delta(part, part.as_weight(found[name])) for name, part in self.slices.items()))

    def _delta(self, part: Slice, values: Array) -> Delta:
        tensor = self.base.graph.initializers[part.weight].const_value
        assert tensor is not None
        before = checksum(tensor, part.axis, part.index)
        return Delta(part.weight, part.shape, part.axis, part.index, values, before)

    def put(self, adapter: Adapter) -> None:
        """Give the module what an adapter of the same selection holds, in the place of what it has learnt so far.

        Raises `UsageError` where the adapter is of other channels; then nothing is written.
        """
        if list(map(_place, adapter.deltas)) != [_place(part) for part in self.slices.values()]:
            raise UsageError(
                "the adapter is of other channels than the module trains",
                where="adapter",
                remedy="select with the same model, options and seed, or apply it to a model: adapter.apply(model)",
            )
        pairs = zip(self.slices.items(), adapter.deltas, strict=True)
        backend("slices").fill(self.module, {name: part.as_trained(delta.values) for (name, part), delta in pairs})

    def clear(self) -> None:
        """Forget what the module has learnt: it is the original again, bit by bit."""
        learnt = backend("slices").contents(self.module, self.slices)
        backend("slices").fill(self.module, {name: np.zeros_like(array) for name, array in learnt.items()})

    def merged(self, *, reordered: bool = False, verify: bool = True) -> ir.Model:
        """Return the model with what was learnt added to its weights, for no cost at run time.

        Its channels are in their original order, or, `reordered`, as the module has them: the trained ones together.
        It is run beside the module, in ONNX Runtime, unless `verify` is false; `PromiseBroken` says that they differ.
        """
        model = self.base.clone()
        self.adapter().apply(model)
        if reordered:
            permute(model, self.orders)
        if verify:
            check(model, self.module, self.feeds or feeds_of(self.base, None, seed=0), "select_finetune")
        return model

    def __str__(self) -> str:
        total = cost(self.base).parameters
        head = f"trains {self.parameters:,} of {total:,} parameters ({self.parameters / total:.2%})"
        rows = [
            f"{part.weight}[{part.axis}]: {len(part.index)} of {part.shape[part.axis]}" for part in self.slices.values()
        ]
        return "\n".join([head, *rows])


def _place(part: Slice | Delta) -> tuple[str, int, list[int]]:
    """Return which part of which weight is trained."""
    return part.weight, part.axis, part.index.tolist()
