"""How nodes that repeat sizes in attributes and operands follow when a dimension changes its size.

A rule hands over *statements*. Asked with the new sizes, a statement answers with the writes it needs, or refuses; the
writes happen only after every statement has answered, so that a refusal leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.axes import Axis, Dim, Product, holds, resolve
from bevel.ir.names import Names
from bevel.ir.sizes import is_open


class Resize:
    """New sizes of some dimensions, and of every axis made of them; `names` is where writes get free names from."""

    def __init__(self, sizes: Mapping[Dim, int], names: Names) -> None:
        self._sizes = sizes
        self._changed = {dim for dim, size in sizes.items() if size != dim.size}
        self._touched: dict[Axis, bool] = {}  # many values share an axis
        self.names = names

    def touches(self, *axes: Axis) -> bool:
        """Say whether any of the axes holds a dimension that changes its size."""
        return any([self._touches(axis) for axis in axes])  # noqa: C419 - a list is faster here

    def _touches(self, axis: Axis) -> bool:
        axis = resolve(axis)
        if isinstance(axis, Dim):
            return axis in self._changed
        if axis not in self._touched:
            self._touched[axis] = holds(axis, self._changed)
        return self._touched[axis]

    def of(self, axis: Axis) -> int:
        """Return the new size of an axis."""
        if isinstance(axis, Dim) and axis.bound is None:
            return self._sizes.get(axis, axis.size)
        return self._of(resolve(axis)) if self._touches(axis) else axis.size

    def _of(self, axis: Axis) -> int:
        """Return the new size of an axis in normal form, within which nothing is to be resolved."""
        if isinstance(axis, Dim):
            return self._sizes.get(axis, axis.size)
        if isinstance(axis, Product):
            return prod([self._of(factor) for factor in axis.factors])
        return sum([self._of(term) for term in axis.terms])


Write: TypeAlias = Callable[[], None]
Statement: TypeAlias = Callable[[Resize], Sequence[Write]]


def attribute_size(node: ir.Node, name: str, axis: Axis) -> Statement:
    """State that an integer attribute repeats the size of an axis."""

    def follow(resize: Resize) -> Sequence[Write]:
        if not resize.touches(axis):
            return ()
        return [lambda: node.attributes.add(ir.AttrInt64(name, resize.of(axis)))]

    return follow


def attribute_sizes(node: ir.Node, name: str, axes: Sequence[Axis], also: Sequence[Axis] = ()) -> Statement:
    """State that an attribute lists the sizes of several axes; it is written anew when one of `also` changes, too."""

    def follow(resize: Resize) -> Sequence[Write]:
        if not resize.touches(*axes, *also):
            return ()
        return [lambda: node.attributes.add(ir.AttrInt64s(name, [resize.of(axis) for axis in axes]))]

    return follow


def drop_attribute(node: ir.Node, name: str) -> Write:
    """Prepare to take an attribute away, if it is there."""

    def write() -> None:
        node.attributes.pop(name, None)

    return write


def operand_sizes(node: ir.Node, index: int, elements: Sequence[Axis | int], also: Sequence[Axis] = ()) -> Statement:
    """State that an integer operand lists sizes: axes that may change among numbers that do not.

    It is written anew when one of `also` changes, too.
    """
    axes = [element for element in elements if not isinstance(element, int)]

    def follow(resize: Resize) -> Sequence[Write]:
        if not resize.touches(*axes, *also):
            return ()
        return [write_operand(node, index, elements, resize)]

    return follow


def write_operand(node: ir.Node, index: int, elements: Sequence[Axis | int], resize: Resize) -> Write:
    """Prepare an operand's new content; sizes known only at run time are taken from the operand it has now."""
    sizes: list[int | None] = []
    for element in elements:
        size = element if isinstance(element, int) else resize.of(element)
        dynamic = is_open(size)
        if dynamic and not isinstance(element, int) and resize.touches(element):
            raise EditRefused(
                f"operand {index} holds a size that changes together with one known only at run time",
                where=f"node {node.name!r} ({node.op_type})",
                remedy="fix the symbolic dimensions of the model's inputs, or leave this group as it is",
            )
        sizes.append(None if dynamic else size)
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return lambda: set_operand(node, index, np.asarray(known), resize.names)
    return lambda: _mix_operand(node, index, sizes, resize.names)


def _mix_operand(node: ir.Node, index: int, sizes: Sequence[int | None], names: Names) -> None:
    """Join known sizes with entries of the present operand."""
    old, graph = node.inputs[index], node.graph
    assert old is not None and isinstance(graph, ir.Graph)
    name = f"{node.name or node.outputs[0].name}.operand{index}"
    dtype = np.dtype(np.int64) if old.dtype is None else old.dtype.numpy()
    parts: list[ir.Value] = []
    for place, size in enumerate(sizes):
        entry = np.array([place] if size is None else [size], np.int64 if size is None else dtype)
        constant = add_initializer(graph, f"{name}.{place}", ir.Tensor(entry), names)
        if size is None:
            gather = ir.node("Gather", [old, constant], name=names.free(f"{constant.name}.entry"))
            gather.outputs[0].name = gather.name
            graph.insert_before(node, gather)
            constant = gather.outputs[0]
        parts.append(constant)
    join = ir.node("Concat", parts, {"axis": 0}, name=names.free(f"{name}.sizes"))
    join.outputs[0].name = join.name
    graph.insert_before(node, join)
    node.replace_input_with(index, join.outputs[0])


def set_operand(node: ir.Node, index: int, array: np.ndarray, names: Names) -> None:
    """Give a node an integer constant of its own as one of its inputs, of the type that it had there."""
    graph, old = node.graph, node.inputs[index]
    assert isinstance(graph, ir.Graph)
    dtype = np.dtype(np.int64) if old is None or old.dtype is None else old.dtype.numpy()
    name = f"{node.name or node.outputs[0].name}.operand{index}"
    value = add_initializer(graph, name, ir.Tensor(array.astype(dtype)), names)
    node.replace_input_with(index, value)


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol, names: Names) -> ir.Value:
    """Register a constant in a graph under a name that nothing else in the model has."""
    shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=names.free(name), shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value
