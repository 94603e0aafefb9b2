"""What a fine-tuned model descends from: the base it was tuned from, and others that were tuned from the same one.

It is kept in the graph's `meta`, so that clones and passes carry it along and files do not. So a pass that needs a
second model is given it with the first, and its text stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.provenance import provenance

KEY: Final = "bevel.lineage"


@dataclass(frozen=True, eq=False)
class Lineage:
    """The base of a fine-tuned model, and its siblings."""

    base: ir.Model
    siblings: tuple[ir.Model, ...] = ()


def lineage(model: ir.Model) -> Lineage | None:
    """Return what a model descends from, if that is known."""
    found: Lineage | None = model.graph.meta.get(KEY)
    return found


def set_lineage(model: ir.Model, source: Lineage | None) -> None:
    """Note what a model descends from; None forgets it."""
    if source is None:
        model.graph.meta.pop(KEY, None)
    else:
        model.graph.meta[KEY] = source


class Relative:
    """A related model's initializers, found by where they came from, else by their names."""

    def __init__(self, model: ir.Model, called: str) -> None:
        self.model = model
        self.called = called
        self._by_origin = dict(_origins(model))

    def counterpart(self, value: ir.Value) -> ir.Value:
        """Return the initializer that is what `value` is in its own model.

        One that came from the same parameter by the same steps counts before one of the same name. Raises
        `EditRefused` where there is none, or where its shape, type or use is another.
        """
        found = self._by_origin.get(_origin(value)) or self.model.graph.initializers.get(value.name or "")
        if found is None or found.const_value is None or value.const_value is None:
            raise self._refused(value, f"{self.called} has no initializer of that name")
        mine, other = tuple(value.const_value.shape.numpy()), tuple(found.const_value.shape.numpy())
        if mine != other:
            raise self._refused(value, f"its shape is {list(mine)}, but {list(other)} in {self.called}")
        if not found.const_value.dtype.is_floating_point():
            raise self._refused(value, f"it holds {found.const_value.dtype} in {self.called}")
        if _roles(value) != _roles(found):  # a square matrix could be the other way round
            raise self._refused(value, f"other operators use it in {self.called}")
        return found

    def _refused(self, value: ir.Value, why: str) -> EditRefused:
        return EditRefused(
            why,
            where=f"initializer {value.name!r}",
            remedy="give models exported alike from one architecture, or skip what only one of them has",
        )


def _origins(model: ir.Model) -> Iterator[tuple[object, ir.Value]]:
    for value in model.graph.initializers.values():
        if (key := _origin(value)) is not None:
            yield key, value


def _roles(value: ir.Value) -> Sequence[object]:
    """Return which operators use an initializer, at which input and with which numbers among their attributes."""
    return sorted((node.domain, node.op_type, place, _numbers(node)) for node, place in value.uses())


def _numbers(node: ir.Node) -> tuple[tuple[str, int], ...]:
    numbers = [each for each in node.attributes.values() if each.type is ir.AttributeType.INT and not each.is_ref()]
    return tuple(sorted((each.name, each.as_int()) for each in numbers))


def _origin(value: ir.Value) -> object:
    """Return what tells a parameter and the steps from it; None where that is not known."""
    source = provenance(value)
    return None if source is None else (source.names, source.transforms)
