"""Edits on groups: every tensor axis, size and attribute that has the dimension changes at once.

Edits are lazy: an initializer's content is read when the model is saved or run, so a model larger than memory can be
edited. They are atomic: everything that can be refused is refused before the first write.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.axes import Axis, Dim, Product, holds, resolve
from bevel.ir.change import Change
from bevel.ir.content import content
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group, analyse
from bevel.ir.names import Names
from bevel.ir.record import Cut, record
from bevel.ir.resize import Resize, Write, add_initializer
from bevel.ir.site import Summation
from bevel.ir.sizes import is_symbolic

Indices: TypeAlias = Mapping[str, np.ndarray]
# How much of a weight is copied at a time where places are taken along several axes: it stays in a core's cache.
BLOCK_BYTES = 2**18


def permute(model: ir.Model | Analysis, orders: Indices) -> None:
    """Reorder groups: entry `i` of a group becomes what was entry `order[i]`; the function stays the same.

    `orders` maps group names to permutations. Raises `EditRefused` where a group does not allow it.
    """
    analysis = _analysis(model)
    taken = _checked(analysis, orders, Freedom.PERMUTE)
    for group, order in taken.items():
        if len(order) != group.size or not np.array_equal(np.sort(order), np.arange(group.size)):
            raise EditRefused(f"the order is no permutation of {group.size} entries", where=f"group {group.name!r}")
    apply(analysis, {group.dim: order for group, order in taken.items()})


def select(model: ir.Model | Analysis, keeps: Indices) -> None:
    """Keep some entries of groups, in the given order, and drop the others.

    `keeps` maps group names to distinct entries. The result computes what the model computes with the consumers of the
    dropped entries zeroed (see `mask`). Raises `EditRefused` where a group does not allow it.
    """
    analysis = _analysis(model)
    taken = _checked(analysis, keeps, FREE_TO_DROP)
    for group, keep in taken.items():
        if not len(keep) or len(np.unique(keep)) != len(keep) or keep.min() < 0 or keep.max() >= group.size:
            raise EditRefused(
                f"keep at least one of its {group.size} entries, each once", where=f"group {group.name!r}"
            )
    apply(analysis, {group.dim: keep for group, keep in taken.items()})


FREE_TO_DROP = Freedom.PERMUTE | Freedom.SELECT


def mask(model: ir.Model | Analysis, keeps: Indices) -> None:
    """Zero what the consumers of dropped entries read, at full size: the reference that `select` is compared with."""
    analysis = _analysis(model)
    zero_dropped(analysis, {analysis[name].dim: np.asarray(keep, np.int64) for name, keep in keeps.items()})


def zero_dropped(analysis: Analysis, keeps: Mapping[Dim, np.ndarray]) -> None:
    """Zero the dropped entries of dimensions at one operand of every node that sums over them."""
    kept = {dim: _indicator(dim.size, keep) for dim, keep in keeps.items()}
    vectors = [(place, _mask_vector(analysis, place, kept)) for place in _masked_places(analysis, kept)]
    names = Names(analysis.model)
    for place, vector in vectors:
        _mask_input(place, vector, names)


def apply(analysis: Analysis, taken: Mapping[Dim, np.ndarray]) -> None:
    """Index every occurrence of the dimensions with the entries taken of each."""
    resize = Resize({dim: len(entries) for dim, entries in taken.items()}, Names(analysis.model))
    cuts = _Cuts(taken, resize)
    writes: list[Write] = []
    for statement in analysis.facts.statements:
        writes.extend(statement(resize))
    for value, axes in analysis.facts.axes.items():
        if axes and value.is_initializer() and value.const_value is not None:
            if parts := cuts.of(axes):
                writes.append(partial(take_places, value, parts))
        elif axes and value.shape is not None and resize.touches(*axes):
            writes.append(partial(_follow_shape, value, axes, resize))
    for write in writes:
        write()


def entries(axis: Axis, taken: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """Return which places of an axis are taken, and in which order, given the entries taken of its dimensions.

    >>> from bevel.ir.axes import product, total
    >>> heads, half = Dim(2), Dim(2)
    >>> entries(product(heads, total(half, half)), {half: np.array([1, 0])})
    array([1, 0, 3, 2, 5, 4, 7, 6])
    """
    return _entries(resolve(axis), taken)


def _entries(axis: Axis, taken: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """Do the same for an axis in normal form, within which nothing is to be resolved."""
    if isinstance(axis, Dim):
        return taken.get(axis, np.arange(axis.size))
    if isinstance(axis, Product):
        places = np.zeros(1, np.int64)
        for factor in axis.factors:
            places = (places[:, None] * factor.size + _entries(factor, taken)[None, :]).ravel()
        return places
    offsets = np.cumsum([0, *(term.size for term in axis.terms[:-1])])
    return np.concatenate([start + _entries(term, taken) for start, term in zip(offsets, axis.terms, strict=True)])


def indicator(axis: Axis, kept: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """Return 1.0 at the places of an axis that stay and 0.0 elsewhere, given the same for its dimensions.

    >>> from bevel.ir.axes import product
    >>> heads, width = Dim(2), Dim(2)
    >>> indicator(product(heads, width), {heads: np.array([0.0, 1.0])})
    array([0., 0., 1., 1.])
    """
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return kept.get(axis, np.ones(axis.size))
    if isinstance(axis, Product):
        vector = np.ones(1)
        for factor in axis.factors:
            vector = np.kron(vector, indicator(factor, kept))
        return vector
    return np.concatenate([indicator(term, kept) for term in axis.terms])


def _analysis(model: ir.Model | Analysis) -> Analysis:
    return model if isinstance(model, Analysis) else analyse(model)


def _checked(analysis: Analysis, indices: Indices, kind: Freedom) -> dict[Group, np.ndarray]:
    """Look up groups by name and refuse those that do not allow the edit."""
    taken = {analysis[name]: np.asarray(entries, np.int64) for name, entries in indices.items()}
    for group in taken:
        if not group.allows(kind):
            raise EditRefused(
                group.why(kind)[0],
                where=f"group {group.name!r}",
                remedy="leave this group out; `bevel inspect` shows what each group allows",
            )
    return taken


class _Cuts:
    """What is taken along each axis: many tensors share one, for which it is worked out once."""

    def __init__(self, taken: Mapping[Dim, np.ndarray], resize: Resize) -> None:
        self._taken = taken
        self._resize = resize
        self._known: dict[Axis, Cut | None] = {}

    def of(self, axes: tuple[Axis, ...]) -> dict[int, Cut]:
        """Return the cuts of a tensor, by axis."""
        found = {place: self._along(resolve(axis)) for place, axis in enumerate(axes)}
        return {place: cut for place, cut in found.items() if cut is not None}

    def _along(self, axis: Axis) -> Cut | None:
        if axis not in self._known:
            self._known[axis] = self._cut(axis) if holds(axis, self._taken) else None
        return self._known[axis]

    def _cut(self, axis: Axis) -> Cut:
        return Cut(axis.size, _entries(axis, self._taken), (Change.of(axis, self._resize.of),))


def take_places(value: ir.Value, parts: Mapping[int, Cut]) -> None:
    """Take places of an initializer along some of its axes, lazily, and note what was taken."""
    source = value.const_value
    assert source is not None
    indices = {axis: cut.kept.copy() for axis, cut in parts.items()}
    sizes = source.shape.numpy()
    shape = ir.Shape([len(indices[axis]) if axis in indices else size for axis, size in enumerate(sizes)])

    def take() -> ir.TensorProtocol:
        with content(source) as array:
            array = gathered(array, indices)
        if source.dtype is ir.DataType.STRING:
            return ir.StringTensor(array, shape=shape, name=value.name)
        return ir.Tensor(array, dtype=source.dtype, shape=shape, name=value.name)

    if source.dtype is ir.DataType.STRING:  # a lazy tensor does not know how large strings are
        value.const_value = take()
    else:
        value.const_value = ir.LazyTensor(take, dtype=source.dtype, shape=shape, name=value.name)
    value.shape = shape
    record(value, parts)


def gathered(array: np.ndarray, indices: Mapping[int, np.ndarray]) -> np.ndarray:
    """Take places of an array along some of its axes, in the order in which it lies in memory.

    A module's matrices come as views of their transposes: numpy would copy them first, at ten times the cost.

    >>> gathered(np.arange(6).reshape(3, 2).T, {0: np.array([1]), 1: np.array([2, 0])})
    array([[5, 1]])
    """
    if array.flags.c_contiguous:
        return _taken_in_order(array, indices)
    order = np.argsort([-abs(step) for step in array.strides], kind="stable")
    places = {place: indices[axis] for place, axis in enumerate(order.tolist()) if axis in indices}
    return _taken_in_order(array.transpose(order), places).transpose(np.argsort(order))


def _taken_in_order(array: np.ndarray, indices: Mapping[int, np.ndarray]) -> np.ndarray:
    """Take places along some axes; where the first is one of several, a few rows at a time, which stay in the cache."""
    if 0 not in indices or len(indices) == 1 or array.nbytes <= BLOCK_BYTES:
        for axis in sorted(indices):
            array = array.take(indices[axis], axis)
        return array
    rows, inner = indices[0], sorted(axis for axis in indices if axis)
    shape = [len(indices[axis]) if axis in indices else size for axis, size in enumerate(array.shape)]
    result = np.empty(shape, array.dtype)
    step = max(1, BLOCK_BYTES * len(array) // array.nbytes)
    for start in range(0, len(rows), step):
        block = array.take(rows[start : start + step], 0)
        for axis in inner[:-1]:
            block = block.take(indices[axis], axis)
        block.take(indices[inner[-1]], inner[-1], out=result[start : start + step], mode="clip")
    return result


def _follow_shape(value: ir.Value, axes: tuple[Axis, ...], resize: Resize) -> None:
    """Bring the recorded shape of a value up to date."""
    assert value.shape is not None
    sizes = [resize.of(axis) if resize.touches(axis) else old for axis, old in zip(axes, value.shape, strict=True)]
    value.shape = ir.Shape([size if not isinstance(size, int) or not is_symbolic(size) else None for size in sizes])


def _indicator(size: int, keep: np.ndarray) -> np.ndarray:
    vector = np.zeros(size)
    vector[keep] = 1
    return vector


def _masked_places(analysis: Analysis, kept: Mapping[Dim, np.ndarray]) -> list[Summation]:
    """Choose, for every sum over a dimension with dropped entries, the operand to zero.

    An activation rather than a weight: a masked copy of every weight would take as much memory again as the model.
    """
    chosen: dict[tuple[ir.Node, int], Summation] = {}
    touched = [place for place in analysis.facts.sums if holds(place.axis, kept)]
    for place in touched:
        key = (place.node, id(place.axis))
        if key not in chosen or (_is_weight(chosen[key]) and not _is_weight(place)):
            chosen[key] = place
    operands = {(*key, place.input) for key, place in chosen.items()}
    # An operand may hold the axis more than once, as where a square matrix is summed up.
    found = {(place.node, place.input, place.position): place for place in touched if _operand(place) in operands}
    return list(found.values())


def _operand(place: Summation) -> tuple[ir.Node, int, int]:
    return place.node, id(place.axis), place.input


def _is_weight(place: Summation) -> bool:
    value = place.node.inputs[place.input]
    return value is not None and value.is_initializer()


def _mask_vector(analysis: Analysis, place: Summation, kept: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """Return zeros and ones along the axis that a node sums over, to be broadcast against its operand."""
    value = place.node.inputs[place.input]
    axes = None if value is None else analysis.axes(value)
    assert axes is not None
    return indicator(axes[place.position], kept).reshape([-1] + [1] * (len(axes) - place.position - 1))


def _mask_input(place: Summation, vector: np.ndarray, names: Names) -> None:
    """Multiply one operand of a node with zeros and ones; an operand may be multiplied more than once."""
    value, graph = place.node.inputs[place.input], place.node.graph
    assert value is not None and isinstance(graph, ir.Graph)
    dtype = value.dtype or ir.DataType.FLOAT
    name = names.free(f"{value.name}.masked.{place.node.name}.{place.position}")
    constant = add_initializer(graph, f"{name}.mask", ir.tensor(vector.astype(dtype.numpy())), names)
    product = ir.node("Mul", [value, constant], name=name)
    product.outputs[0].name, product.outputs[0].type = name, value.type
    graph.insert_before(place.node, product)
    place.node.replace_input_with(place.input, product.outputs[0])
