"""What a model would cost if some dimensions had other sizes, without an edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeVar

import onnx_ir as ir

from bevel.ir.axes import Axis, Dim, Product, Sum, atoms, resolve
from bevel.ir.cost import Cost, cost, is_parameter, macs, multiplies, recorded, size_in_bytes
from bevel.ir.groups import Analysis
from bevel.ir.sizes import is_symbolic

Item = TypeVar("Item", ir.Node, "_Weight")


class Forecast:
    """Predicts the cost of a model under new sizes of its dimensions; only what they touch is computed anew.

    It says what `cost` says after `select`, but for the shape operands that an edit writes anew, 8 bytes a size.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._axes = analysis.facts.axes
        self._model = analysis.model
        self._shapes = _Shapes(self._axes)
        self._nodes: dict[Dim, dict[ir.Node, None]] = {}
        self._weights: dict[Dim, dict[_Weight, None]] = {}
        self._macs: dict[ir.Node, int] = {}
        for value in self._initializers():
            for dim in self._dims(value):
                self._weights.setdefault(dim, {})[_Weight.of(value)] = None
        for node in self._products():
            self._macs[node] = macs(node) or 0
            for dim in {dim for value in (*node.inputs, *node.outputs) if value for dim in self._dims(value)}:
                self._nodes.setdefault(dim, {})[node] = None

    @cached_property
    def now(self) -> Cost:
        """What the model costs as it is."""
        return cost(self._model)

    def cost(self, sizes: Mapping[Dim, int]) -> Cost:
        """Return the cost with new sizes of some dimensions; a size may be zero."""
        changed = {dim: size for dim, size in sizes.items() if size != dim.size}
        self._shapes.resize(changed)
        parameters, size = self._weights_saved(_touched(self._weights, changed))
        saved = sum(self._macs[node] - (macs(node, self._shapes.of) or 0) for node in _touched(self._nodes, changed))
        now = self.now
        return Cost(now.parameters - parameters, now.bytes - size, now.macs - saved, now.uncounted)

    def _weights_saved(self, weights: Sequence[_Weight]) -> tuple[int, int]:
        """Return how many parameters and bytes fewer some initializers have; each becomes a tensor of its own."""
        parameters = size = 0
        taken = Counter(weight.tensor for weight in weights)
        freed = {tensor for tensor, count in taken.items() if count == self._owners[tensor]}
        for weight in weights:
            elements = prod(self._shapes.of(weight.value) or ())
            if weight.tensor in freed:  # counted once, whoever shares it
                freed.remove(weight.tensor)
                parameters += weight.size * weight.is_parameter
                size += weight.bytes
            parameters -= elements * weight.is_parameter
            size -= weight.bytes_of(elements)
        return parameters, size

    @cached_property
    def _owners(self) -> Mapping[int, int]:
        """How many initializers share each tensor: it is gone when the last of them has changed."""
        graphs = self._model.graphs()
        return Counter(id(value.const_value) for graph in graphs for value in graph.initializers.values())

    def _initializers(self) -> Iterator[ir.Value]:
        return (value for value in self._axes if value.is_initializer() and value.const_value is not None)

    def _products(self) -> Iterator[ir.Node]:
        return (node for graph in self._model.graphs() for node in graph if multiplies(node))

    def _dims(self, value: ir.Value) -> Iterator[Dim]:
        for axis in self._axes.get(value) or ():
            yield from atoms(axis)


class _Weight(NamedTuple):
    """An initializer and what its tensor takes; looked up once, for tensors are slow to ask."""

    value: ir.Value
    tensor: int
    size: int
    bytes: int
    bits: int
    is_parameter: bool

    @staticmethod
    def of(value: ir.Value) -> _Weight:
        tensor = value.const_value
        assert tensor is not None
        size, taken = tensor.size, size_in_bytes(tensor)
        bits = 8 * taken // max(size, 1) if tensor.dtype == ir.DataType.STRING else tensor.dtype.bitwidth
        return _Weight(value, id(tensor), size, taken, bits, is_parameter(tensor))

    def bytes_of(self, elements: int) -> int:
        """Return what so many elements take; types below a byte are packed, strings taken to be alike."""
        return -(-elements * self.bits // 8)


class _Shapes:
    """The shapes of values under new sizes; an axis that several values have is measured once."""

    def __init__(self, axes: Mapping[ir.Value, tuple[Axis, ...] | None]) -> None:
        self._axes = axes
        self._sizes: Mapping[Dim, int] = {}
        self._shapes: dict[ir.Value, tuple[Sequence[int], tuple[Axis, ...]] | None] = {}
        self._lengths: dict[Axis, int | None] = {}

    def resize(self, sizes: Mapping[Dim, int]) -> None:
        """Take new sizes in place of the last ones."""
        self._sizes = sizes
        self._lengths = {}

    def of(self, value: ir.Value) -> Sequence[int] | None:
        """Return how long the axes of a value will be, symbolic ones as 1, as `select` leaves them."""
        if value not in self._shapes:
            self._shapes[value] = self._read(value)
        found = self._shapes[value]
        if found is None:
            return recorded(value)
        return [
            before if (after := self._length(axis)) is None else after
            for before, axis in zip(found[0], found[1], strict=True)
        ]

    def _read(self, value: ir.Value) -> tuple[Sequence[int], tuple[Axis, ...]] | None:
        old, axes = recorded(value), self._axes.get(value)
        return None if old is None or axes is None else (old, tuple(map(resolve, axes)))

    def _length(self, axis: Axis) -> int | None:
        """Return the new size of an axis, None if it stays."""
        if axis not in self._lengths:
            size, touched = self._measure(axis)
            self._lengths[axis] = (1 if is_symbolic(size) else size) if touched else None
        return self._lengths[axis]

    def _measure(self, axis: Axis) -> tuple[int, bool]:
        """Return the size of an axis, and whether a dimension with a new size is in it."""
        if isinstance(axis, Dim):
            return self._sizes.get(axis, axis.size), axis in self._sizes
        parts = [self._measure(part) for part in _parts(axis)]
        sizes = [size for size, _ in parts]
        return (prod(sizes) if isinstance(axis, Product) else sum(sizes)), any(touched for _, touched in parts)


def _parts(axis: Product | Sum) -> tuple[Axis, ...]:
    return axis.factors if isinstance(axis, Product) else axis.terms


def _touched(index: Mapping[Dim, Mapping[Item, None]], sizes: Mapping[Dim, int]) -> list[Item]:
    """Return what holds any of the dimensions, in a fixed order."""
    return list(dict.fromkeys(item for dim in sizes for item in index.get(dim, ())))
