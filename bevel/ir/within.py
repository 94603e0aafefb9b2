"""Orders within: every head puts its channels in an order of its own.

To the analysis the channels of a head are one dimension, which all heads share, so that `permute` gives all of them one
order. Where nodes treat each head by itself, more is allowed:

    q  b s (h d)    k  b t (h d)    q k  b h s t      each head h may order its d, in q as in k

That holds if a head is part of all that has the channels, and if places of channels that a node treats as one lie in
the same head: a rotation whose angles all heads share does not pass, nor does the product of each head with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.axes import Axis, Dim, Product, Sum, atoms, paths, resolve
from bevel.ir.change import Change
from bevel.ir.content import content
from bevel.ir.coupling import Freedom
from bevel.ir.edit import entries, take_places
from bevel.ir.groups import Analysis, Group
from bevel.ir.provenance import provenance
from bevel.ir.record import MIXED, Cut
from bevel.ir.resize import Write
from bevel.ir.site import Axes, Site
from bevel.ir.strands import Occurrence, alternatives, occurrences, strands


def host(analysis: Analysis, group: Group) -> Group | None:
    """Return the group (heads) each of whose entries may put the entries of `group` in an order of its own, if any."""
    return hosts(analysis, [group]).get(group)


def hosts(analysis: Analysis, groups: Iterable[Group]) -> dict[Group, Group]:
    """Return the `host` of each of several groups that has one."""
    by_dim = {each.dim: each for each in analysis.groups}
    around = {
        group: [by_dim[dim] for dim in dict.fromkeys(outer_dims(analysis, group)) if dim in by_dim]
        for group in groups
        if group.allows(Freedom.PERMUTE)
    }
    if not any(around.values()):
        return {}
    nodes = _Nodes(analysis)
    found: dict[Group, Group] = {}
    for group, heads in around.items():
        able = (each for each in heads if each.allows(Freedom.SELECT))
        free = next((each for each in able if nodes.agree(group.dim, each.dim)), None)
        if free is not None:
            found[group] = free
    return found


def permute_within(analysis: Analysis, orders: Mapping[str, np.ndarray]) -> None:
    """Reorder groups head by head: entry `i` of head `h` becomes what was its entry `orders[h, i]`.

    `orders` maps group names to permutations `[heads, size]`, heads being the entries of the group's `host`. The
    function stays the same. Raises `EditRefused` where a group has no host.
    """
    fibres = [_fibre(analysis, analysis[name], np.asarray(found, np.int64)) for name, found in orders.items()]
    writes: list[Write] = []
    for value, axes in analysis.facts.axes.items():
        if axes and value.is_initializer() and value.const_value is not None:
            writes.extend(_writes(value, axes, fibres))
    for write in writes:
        write()


@dataclass(frozen=True)
class Fibre:
    """A dimension, that of the heads it lies in, and the order of each: `[heads, size]`."""

    inner: Dim
    outer: Dim
    orders: np.ndarray

    def moved(self, axis: Axis) -> np.ndarray:
        """Return by how far each place of an axis lies from the one that it is taken from.

        >>> from bevel.ir.axes import product
        >>> heads, width = Dim(2), Dim(2)
        >>> Fibre(width, heads, np.array([[0, 1], [1, 0]])).moved(product(heads, width))
        array([ 0,  0,  1, -1])
        """
        moves = np.zeros(axis.size, np.int64)
        for cells in cells_of(axis, self.inner, self.outer):
            here = cells.entries >= 0
            entry, heads = cells.entries[here], cells.heads[here]
            moves[here] += (self.orders[heads, entry] - entry) * cells.stride
        return moves

    def places(self, axis: Axis, across: Axis) -> np.ndarray:
        """Return from where the places of an axis are taken, for each place of the axis that has the heads."""
        (heads,) = (_coordinate(across, path)[0] for path, dim in paths(across) if dim is self.outer)
        orders = [entries(axis, {self.inner: order}) for order in self.orders]
        return np.stack([orders[head] if head >= 0 else np.arange(axis.size) for head in heads])


class Cells(NamedTuple):
    """Which entry of a dimension each place of an axis holds, or -1, of which head, and how far apart entries are.

    `path` is where the dimension stands in the axis.
    """

    path: tuple[int, ...]
    entries: np.ndarray
    heads: np.ndarray
    stride: int


def cells_of(axis: Axis, inner: Dim, outer: Dim | None) -> list[Cells]:
    """Return the places of an axis for each time that a dimension stands there; without heads there is one, number 0.

    >>> from bevel.ir.axes import product
    >>> heads, width = Dim(2), Dim(2)
    >>> (cells,) = cells_of(product(heads, width), width, heads)
    >>> cells.entries, cells.heads, cells.path
    (array([0, 1, 0, 1]), array([0, 0, 1, 1]), (1,))
    """
    hosts = [path for path, dim in paths(axis) if dim is outer]
    found = []
    for path, dim in paths(axis):
        if dim is inner:
            entry, stride = _coordinate(axis, path)
            around = [other for other in hosts if not alternatives(axis, path, other)]
            heads = _coordinate(axis, around[0])[0] if around else np.zeros(axis.size, np.int64)
            found.append(Cells(path, entry, heads, stride))
    return found


def _fibre(analysis: Analysis, group: Group, orders: np.ndarray) -> Fibre:
    outer = host(analysis, group)
    if outer is None:
        raise EditRefused(
            "its entries cannot be ordered head by head: there are no heads, or something ties them together",
            where=f"group {group.name!r}",
            remedy="give all heads one order: permute",
        )
    if orders.shape != (outer.size, group.size) or not (np.sort(orders, 1) == np.arange(group.size)).all():
        raise EditRefused(
            f"the orders are no permutations of {group.size} entries for each of {outer.size} heads",
            where=f"group {group.name!r}",
        )
    return Fibre(group.dim, outer.dim, orders)


def _writes(value: ir.Value, axes: Axes, fibres: Sequence[Fibre]) -> Iterator[Write]:
    """Prepare the new content of an initializer."""
    parts: dict[int, Cut] = {}
    for place, axis in enumerate(axes):
        dims = set(atoms(axis))
        within = [fibre for fibre in fibres if fibre.inner in dims]
        moves = [fibre.moved(axis) for fibre in within if fibre.outer in dims]
        if moves:
            order = np.arange(axis.size) + sum(moves)
            parts[place] = Cut(axis.size, order, (Change.of(axis, lambda each: each.size),))
        for fibre in within:
            if fibre.outer not in dims:
                across = next(other for other, each in enumerate(axes) if fibre.outer in set(atoms(each)))
                yield partial(_take_apart, value, place, across, fibre.places(axis, axes[across]))
    if parts:
        yield partial(take_places, value, parts)


def _take_apart(value: ir.Value, axis: int, across: int, places: np.ndarray) -> None:
    """Take places of an initializer along an axis, others for each place of another axis: `[across, axis]`."""
    source, shape = value.const_value, value.shape
    assert source is not None and isinstance(shape, ir.Shape)
    index = places if across < axis else places.T
    index = np.expand_dims(index, [other for other in range(len(shape)) if other not in (axis, across)])

    def take() -> ir.TensorProtocol:
        with content(source) as array:
            return ir.Tensor(np.take_along_axis(array, index, axis), dtype=source.dtype, shape=shape, name=value.name)

    value.const_value = ir.LazyTensor(take, dtype=source.dtype, shape=shape, name=value.name)
    value.meta[MIXED] = True


def outer_dims(analysis: Analysis, group: Group) -> Iterator[Dim]:
    """Yield the dimensions that stand before a group's in some product of an initializer's, the nearest first."""
    for member in group.members:
        axis = (analysis.axes(member.value) or ())[member.axis]
        before: list[Dim] = []
        for place in member.path:
            axis = resolve(axis)
            if isinstance(axis, Product):
                before.extend(each for factor in axis.factors[:place] for each in atoms(factor))
            assert not isinstance(axis, Dim)
            axis = (axis.factors if isinstance(axis, Product) else axis.terms)[place]
        yield from reversed(before)


class _Nodes:
    """The nodes and initializers of a graph by dimension: do they keep the heads that it lies in apart?"""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.nodes: dict[Dim, dict[ir.Node, None]] = {}
        self.weights: dict[Dim, dict[ir.Value, None]] = {}
        for node in ir.traversal.RecursiveGraphIterator(analysis.model.graph):
            for value in (*node.inputs, *node.outputs):
                for dim in () if value is None else _dims(analysis, value):
                    self.nodes.setdefault(dim, {})[node] = None
        for value in analysis.facts.axes:
            for dim in _dims(analysis, value) if value.is_initializer() else ():
                self.weights.setdefault(dim, {})[value] = None

    def agree(self, inner: Dim, outer: Dim) -> bool:
        """Say whether heads are apart at every node and in every initializer."""
        return all(self._has_heads(value, inner, outer) for value in self.weights.get(inner, ())) and all(
            self._apart(node, inner, outer) for node in self.nodes.get(inner, ())
        )

    def _has_heads(self, value: ir.Value, inner: Dim, outer: Dim) -> bool:
        """Say whether an initializer has heads wherever it has channels: on the same axis, if it is a parameter."""
        found = [each for each, dim in occurrences(value, self.analysis.facts) if dim is inner]
        heads = [self._head(each, outer) for each in found]
        apart = provenance(value) is None
        return all(
            head is not None and (apart or head.axis == each.axis) for head, each in zip(heads, found, strict=True)
        )

    def _apart(self, node: ir.Node, inner: Dim, outer: Dim) -> bool:
        """Say whether places that a node treats as one lie in heads that it treats as one."""
        site = Site(node, self.analysis.facts, self.analysis.model.opset_imports.get(node.domain, 1))
        found = strands(site)
        strand_of = {each: strand for strand in found if strand.dim is outer for each in strand.occurrences}
        for strand in found:
            if strand.dim is inner:
                heads = [self._head(each, outer) for each in strand.occurrences]
                apart = [None if head is None else strand_of.get(head) for head in heads]
                if strand.fixed or any(each is None or each.fixed or each is not apart[0] for each in apart):
                    return False
        return True

    def _head(self, place: Occurrence, outer: Dim) -> Occurrence | None:
        """Return the one place of the heads that a place of the channels lies in."""
        axes = self.analysis.axes(place.value) or ()
        found = [
            each
            for each, dim in occurrences(place.value, self.analysis.facts)
            if dim is outer and not (each.axis == place.axis and alternatives(axes[place.axis], each.path, place.path))
        ]
        return found[0] if len(found) == 1 else None


def _dims(analysis: Analysis, value: ir.Value) -> dict[Dim, None]:
    return dict.fromkeys(dim for axis in analysis.axes(value) or () for dim in atoms(axis))


def _coordinate(axis: Axis, path: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Return which entry of the dimension at a path each place of an axis holds, or -1, and how far entries are apart.

    >>> from bevel.ir.axes import product, total
    >>> _coordinate(product(Dim(2), total(Dim(2), Dim(1))), (1, 0))
    (array([ 0,  1, -1,  0,  1, -1]), 1)
    """
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return np.arange(axis.size), 1
    first, *rest = path
    if isinstance(axis, Sum):
        entries, stride = _coordinate(axis.terms[first], tuple(rest))
        before = sum(term.size for term in axis.terms[:first])
        return np.pad(entries, (before, axis.size - before - len(entries)), constant_values=-1), stride
    entries, stride = _coordinate(axis.factors[first], tuple(rest))
    after = int(np.prod([factor.size for factor in axis.factors[first + 1 :]], dtype=np.int64))
    outer = axis.size // after // len(entries)
    return np.tile(np.repeat(entries, after), outer), stride * after
