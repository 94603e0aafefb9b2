"""What a rule sees of a node and may say about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import ONE, Axis, fresh
from bevel.ir.coupling import (
    FIXED,
    Freedom,
)
from bevel.ir.resize import Statement
from bevel.ir.sizes import Symbols, shape_sizes
from bevel.ir.unification import Solver

_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.INT8})
MOST_INTEGERS = 4096  # a longer constant is data, not a shape

POSITIONS = "its positions matter"
SIZES = "its content is read as sizes or places"
STRUCTURAL = frozenset({POSITIONS, SIZES})  # such axes (kernel taps, shape tensors) are no dimensions of the model's

Axes = tuple[Axis, ...]


class Opaque(Exception):
    """Raised by a rule that cannot tell how the axes of its node belong together: all of them are fixed."""


class Mark(NamedTuple):
    """What an axis allows at one node, and why not more."""

    axis: Axis
    keeps: Freedom
    why: str
    node: ir.Node | None


class Summation(NamedTuple):
    """An axis of a node's input over which the node sums products."""

    node: ir.Node
    input: int
    position: int
    axis: Axis


@dataclass
class Facts:
    """Everything the rules said about a graph."""

    symbols: Symbols = field(default_factory=Symbols)
    solver: Solver = field(default_factory=Solver)
    axes: dict[ir.Value, Axes | None] = field(default_factory=dict)
    integers: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    sequences: dict[ir.Value, list[Axes]] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    sums: list[Summation] = field(default_factory=list)

    def of(self, value: ir.Value) -> Axes | None:
        """Return the axes of a value, made from its shape when it is met for the first time."""
        if value not in self.axes:
            self.axes[value] = self._from_shape(value)
        return self.axes[value]

    def _from_shape(self, value: ir.Value) -> Axes | None:
        tensor = value.const_value
        shape = value.shape if tensor is None else tensor.shape
        if shape is None:
            return None
        return tuple([fresh(size) for size in shape_sizes(shape, self.symbols, value.name or str(id(value)))])

    def integers_of(self, value: ir.Value) -> np.ndarray | None:
        """Return the content of a small integer tensor, symbolic sizes as primes (an array of Python integers)."""
        if value not in self.integers:
            tensor = value.const_value
            if tensor is None or tensor.dtype not in _INTEGERS or tensor.size > MOST_INTEGERS:
                return None
            self.integers[value] = tensor.numpy().astype(object)
        return self.integers[value]


class Site:
    """One node, its inputs' axes, and the statements that a rule makes about them."""

    def __init__(self, node: ir.Node, facts: Facts, version: int) -> None:
        self.node = node
        self.facts = facts
        self.version = version
        self.heard: set[int] = set()  # inputs of which the rule took notice

    # What the node is

    @property
    def inputs(self) -> int:
        """How many inputs the node lists."""
        return len(self.node.inputs)

    @property
    def outputs(self) -> int:
        """How many outputs the node lists."""
        return len(self.node.outputs)

    def has(self, index: int) -> bool:
        """Say whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        """Return an input; a rule asks only for what the operator requires."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        self.heard.add(index)
        if value is None:
            raise Opaque(f"its input {index} is missing")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return self.node.attributes.get_int(name, default)

    def integer_list(self, name: str) -> list[int] | None:
        """Return an attribute that lists integers."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else list(attribute.as_ints())

    def text(self, name: str, default: str = "") -> str:
        """Return a string attribute."""
        return self.node.attributes.get_string(name, default)

    # What is known of its values

    def axes(self, index: int) -> Axes:
        """Return the axes of an input."""
        axes = self.facts.of(self.value(index))
        if axes is None:
            raise Opaque(f"the rank of its input {index} is unknown")
        return axes

    def integers(self, index: int) -> list[int] | None:
        """Return the integers of an input whose content is known, flattened."""
        if not self.has(index):
            return None
        self.fix(self.facts.of(self.value(index)) or (), SIZES)
        array = self.facts.integers_of(self.value(index))
        return None if array is None else [int(item) for item in array.ravel()]

    def required_integers(self, index: int) -> list[int]:
        """Return the integers of an input that must be known."""
        integers = self.integers(index)
        if integers is None:
            raise Opaque(f"the content of its input {index} is not known before it runs")
        return integers

    def output_sizes(self, index: int = 0) -> list[int] | None:
        """Return the inferred sizes of an output, symbols as primes, if its rank is known."""
        value = self.node.outputs[index]
        if value.shape is None:
            return None
        return shape_sizes(value.shape, self.facts.symbols, value.name or str(id(value)))

    def fresh_output(self, index: int = 0) -> Axes:
        """Make new axes for an output from its inferred shape."""
        sizes = self.output_sizes(index)
        if sizes is None:
            raise Opaque(f"the rank of its output {index} is unknown")
        return tuple([fresh(size) for size in sizes])

    def position(self, axis: int, rank: int) -> int:
        """Count an axis from the left."""
        if not -rank <= axis < max(rank, 1):
            raise Opaque(f"its axis {axis} is outside rank {rank}")
        return axis % max(rank, 1)

    # What a rule says

    def set(self, index: int, axes: Iterable[Axis]) -> None:
        """State the axes of an output, if the node has that output."""
        if index < len(self.node.outputs):
            self.facts.axes[self.node.outputs[index]] = tuple(axes)

    def equate(self, left: Axis, right: Axis) -> None:
        """State that two axes are the same."""
        self.facts.solver.unify(left, right)

    def equate_all(self, left: Sequence[Axis], right: Sequence[Axis]) -> None:
        """State that two tensors have the same axes."""
        if len(left) != len(right):
            raise Opaque(f"ranks {len(left)} and {len(right)} should be equal")
        for a, b in zip(left, right, strict=True):
            self.equate(a, b)

    def fix(self, axes: Axis | Iterable[Axis], why: str) -> None:
        """State that the order of an axis carries meaning."""
        self.keep(axes, FIXED, why)

    def keep(self, axes: Axis | Iterable[Axis], freedom: Freedom, why: str) -> None:
        """State what an axis, or each of several, still allows at this node."""
        for axis in [axes] if isinstance(axes, Axis) else axes:
            if axis.size != 1:
                self.facts.marks.append(Mark(axis, freedom, why, self.node))

    def ignore(self, *indices: int) -> None:
        """State that the order of entries in some inputs means nothing here: a scalar, or a type to imitate."""
        self.heard.update(indices)

    def sums_over(self, axis: Axis, index: int, position: int) -> None:
        """State that the node sums products over an axis, which stands at a position of an input."""
        self.facts.sums.append(Summation(self.node, index, position, axis))

    def states(self, statement: Statement) -> None:
        """State that the node repeats sizes."""
        self.facts.statements.append(statement)

    def broadcast(self, *operands: Sequence[Axis]) -> Axes:
        """Align axes at the right; axes of size one do not join."""
        rank = max([len(axes) for axes in operands], default=0)
        result: list[Axis] = [ONE] * rank
        for axes in operands:
            for place, axis in enumerate(axes, start=rank - len(axes)):
                if axis.size == 1:
                    continue
                if result[place].size == 1:
                    result[place] = axis
                elif result[place] is not axis:
                    self.equate(result[place], axis)
        return tuple(result)
