"""Which entries of which groups are trained, in what order that puts them, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.errors import EditRefused
from bevel.ir.axes import Dim
from bevel.ir.groups import Analysis
from bevel.passes.reordering.orders import contiguous
from bevel.selection.draw import Take
from bevel.selection.slices import Slice, slice_of
from bevel.selection.units import Kind, Unit

Array = np.ndarray[Any, Any]

SIDES: Final[Mapping[Kind, tuple[str, str]]] = {"channels": ("up", "down"), "heads": ("value", "out")}
"""What the shares are called of entries that are trained where they are written, and where they are read."""


@dataclass(frozen=True)
class Chosen:
    """Entries of a unit: those trained where they are written, and those trained where they are read."""

    unit: Unit
    written: Array
    read: Array

    @property
    def order(self) -> Array:
        """The order in which each of both sets is a range."""
        return contiguous(self.unit.group.size, self.written.tolist(), self.read.tolist())

    def slices(self, taken: Mapping[Dim, Array], analysis: Analysis) -> Iterator[Slice]:
        """Yield the slices of the weights, which are still as they were; `taken` has the orders of all groups."""
        both = len(np.intersect1d(self.written, self.read))
        first = len(self.written) - both
        if len(self.written):
            for side in self.unit.writers:
                yield slice_of(side, range(len(self.written)), taken, analysis)
        if len(self.read):
            yield slice_of(self.unit.reader, range(first, first + len(self.read)), taken, analysis)


def choose(found: Sequence[Unit], shares: Mapping[str, float], take: Take) -> list[Chosen]:
    """Choose entries of each unit, as many of all units of a kind together as the shares say.

    Raises `EditRefused` where a share is of a kind that the model does not have.
    """
    chosen = []
    for kind, (written, read) in SIDES.items():
        of_kind = [unit for unit in found if unit.kind == kind]
        for name in (written, read):
            if shares[name] and not of_kind:
                raise EditRefused(f"it has no {kind} that can be trained apart", where="model", remedy=f"set {name}=0")
        if shares["value"]:
            _refuse_mixed(of_kind)
        parts = zip(of_kind, take(of_kind, shares[written]), take(of_kind, shares[read]), strict=True)
        chosen += [Chosen(*each) for each in parts]
    return [each for each in chosen if len(each.written) or len(each.read)]


def _refuse_mixed(found: Sequence[Unit]) -> None:
    """Refuse to train values that are one with queries and keys."""
    for unit in found:
        if unit.mixed is not None:
            raise EditRefused(
                "queries, keys and values cannot be told apart in it",
                where=f"weight {unit.mixed.layer.weight.name!r}",
                remedy="set value=0: `out` trains heads where they are read",
            )
