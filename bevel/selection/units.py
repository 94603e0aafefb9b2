"""Where channels and heads lie: in the weights of the layers that write them, and of the one that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from bevel.errors import EditRefused
from bevel.ir.axes import Axis, Dim, Product, Sum, atoms, places, resolve
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group
from bevel.passes.choice import choose, left_out
from bevel.passes.fitting.layers import GEMM, MATMUL, Layer, layers

Array = np.ndarray[Any, Any]
Kind: TypeAlias = Literal["channels", "heads"]

REASONS: Final = 3
"""Of those that speak against the groups of a model, how many an error lists."""


@dataclass(frozen=True, eq=False)
class Side:
    """An axis of a layer's weight, and which entry of a group each of its places belongs to, -1 for none."""

    layer: Layer
    axis: int
    owners: Array

    @property
    def parts(self) -> int:
        """How many times an entry occurs in the axis: gate and up in one matrix are two."""
        is_last = self.owners == self.owners.max()
        return int(np.count_nonzero(np.diff(is_last.astype(int), prepend=0) == 1))


@dataclass(frozen=True, eq=False)
class Unit:
    """A group that one layer reads: the hidden channels of a feed-forward layer, or the heads of an attention.

    `writers` are the layers before: up and gate, or the value projection. A head is a key-value group, whole.
    """

    group: Group
    kind: Kind
    writers: tuple[Side, ...]
    reader: Side

    @property
    def mixed(self) -> Side | None:
        """A matrix of queries, keys and values in which the values cannot be told from the others, if there is one."""
        return next((side for side in self.writers if self.kind == "heads" and side.parts > 1), None)


def units(analysis: Analysis, only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Unit]:
    """Find the channels and heads that can be trained apart from the others.

    A layer is a MatMul or Gemm whose matrix is used once. What several layers read, as a residual stream, is none.
    Raises `EditRefused` where there are none.
    """
    sides = _sides(analysis)
    groups = choose(analysis, Freedom.PERMUTE, only, skip)
    found = [unit for group in groups if (unit := _unit(analysis, group, sides.get(group.dim, []))) is not None]
    if not found:
        reasons = left_out(analysis.groups, Freedom.PERMUTE)[:REASONS]
        raise EditRefused(
            "no feed-forward channels or heads stand between matrices of their own"
            + "".join(f"\n  {reason}" for reason in reasons),
            where="model",
            remedy="it takes a MatMul or Gemm that alone reads what others wrote; `bevel inspect` shows the groups",
        )
    return found


def _sides(analysis: Analysis) -> dict[Dim, list[tuple[Layer, int]]]:
    """Return, by dimension, the layers' weights that have it, with its axis."""
    found: dict[Dim, list[tuple[Layer, int]]] = {}
    for layer in filter(_is_matrix, layers(analysis.model)):
        axes = analysis.axes(layer.weight)
        for place, axis in enumerate(axes or ()):
            for dim in dict.fromkeys(atoms(axis)):
                found.setdefault(dim, []).append((layer, place))
    return found


def _is_matrix(layer: Layer) -> bool:
    """Say whether a layer is `x @ w + b`, with a matrix of its own."""
    operand, kind = layer.node.inputs[1], layer.node.op_type
    assert operand is not None
    alone = len(operand.uses()) == 1 == len(layer.weight.uses()) and not layer.weight.is_graph_output()
    factors = [layer.node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")] if kind == GEMM else []
    return kind in (MATMUL, GEMM) and alone and all(factor == 1 for factor in factors)


def _unit(analysis: Analysis, group: Group, sides: Sequence[tuple[Layer, int]]) -> Unit | None:
    """Return a group as a unit, if one layer reads it, entry by entry or head by head, and others write it."""
    readers = [(layer, axis) for layer, axis in sides if axis == layer.in_axis]
    if len(readers) != 1:
        return None
    layer, place = readers[0]
    axis = _axis(analysis, layer, place)
    terms = [term for term in _terms(axis) if group.dim in atoms(term)]
    if not all(_leads(term, group.dim) for term in terms):
        return None
    inside = set(atoms(axis))
    writers = [
        Side(layer, place, owners)
        for layer, place in sides
        if place == layer.out_axis and (owners := _owners(_axis(analysis, layer, place), group.dim, inside)).max() >= 0
    ]
    kind: Kind = "heads" if any(isinstance(term, Product) for term in terms) else "channels"
    reader = Side(layer, place, _owners(axis, group.dim, inside))
    return Unit(group, kind, tuple(writers), reader) if writers else None


def _axis(analysis: Analysis, layer: Layer, place: int) -> Axis:
    axes = analysis.axes(layer.weight)
    assert axes is not None
    return resolve(axes[place])


def _terms(axis: Axis) -> Iterator[Axis]:
    yield from axis.terms if isinstance(axis, Sum) else (axis,)


def _leads(term: Axis, dim: Dim) -> bool:
    """Say whether a dimension is a term, or its outermost factor: then an entry's places lie together."""
    return (term.factors[0] if isinstance(term, Product) else term) is dim


def _owners(axis: Axis, dim: Dim, inside: set[Dim]) -> Array:
    """Return the owner of each place, in the terms of an axis that go where the reader's does, -1 in the others.

    Of a fused projection's queries, keys and values, it is the values whose channels the output projection reads.
    """
    found = []
    for term in _terms(axis):
        if dim in (dims := set(atoms(term))) and dims <= inside:
            found.append(places(term, dim)[0])
        else:
            found.append(np.full(term.size, -1))
    return np.concatenate(found)
