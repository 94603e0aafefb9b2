"""What a rule sees of a node and may say about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from bevel.errors import RuleError
from bevel.ir.axes import ONE, Axis, Solver, fresh, product, total
from bevel.ir.coupling import (
    ELLIPSIS,
    FIXED,
    FREE,
    OWN,
    STAR,
    UNIT,
    Compound,
    Coupling,
    Freedom,
    TensorPattern,
    Term,
    Word,
    parse_axis,
    parse_equation,
)
from bevel.ir.resize import Statement, attribute_size
from bevel.ir.sizes import Symbols, shape_sizes

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

    def couple(self, coupling: Coupling) -> None:
        """State an equation between the axes of inputs and outputs."""
        _Application(self, coupling).run()


class _Application:
    """Applies one coupling to one node."""

    def __init__(self, site: Site, coupling: Coupling) -> None:
        self.site = site
        self.coupling = coupling
        self.words: dict[str, Axis] = {name: fresh(size) for name, size in coupling.sizes.items()}
        self.leading: list[Sequence[Axis]] = []
        self.compounds: list[tuple[Compound, Axis]] = []
        self.seen: dict[str, list[tuple[int, int, Axis]]] = {}
        self.stars = 0

    def run(self) -> None:
        inputs, outputs = parse_equation(self.coupling.equation)
        if self.site.inputs > len(inputs) or self.site.outputs > len(outputs):
            raise Opaque(f"its rule {self.coupling.equation!r} has too few tensors")
        for index, pattern in enumerate(inputs):
            if self.site.has(index):
                self._read(index, pattern)
        self._solve_compounds()
        leading = self.site.broadcast(*self.leading)
        written: set[str] = set()
        for index, pattern in enumerate(outputs[: self.site.outputs]):
            self._write(index, pattern, leading, written)
        self._mark(written)

    def _read(self, index: int, pattern: TensorPattern) -> None:
        if pattern == ".":
            self.site.ignore(index)
            return
        axes = self.site.axes(index)
        if pattern == "?":
            self.site.fix(axes, "the order of its entries matters")
            return
        assert not isinstance(pattern, str)
        for position, term, axis in self._match(pattern, axes, index):
            if term is STAR or term is OWN:
                self.site.fix(axis, POSITIONS)
            elif term is UNIT:
                self._expect_unit(axis, index)
            elif isinstance(term, Word):
                self._bind(term.name, axis)
                self.seen.setdefault(term.name, []).append((index, position, axis))
            else:
                self.compounds.append((term, axis))
                for name in _words(term):
                    self.seen.setdefault(name, []).append((index, position, axis))

    def _match(self, pattern: tuple[Term, ...], axes: Axes, index: int) -> list[tuple[int, Term, Axis]]:
        """Pair terms with axes, spreading `...` and `*`."""
        spread = len(axes) - len(pattern) + 1
        many = next((place for place, term in enumerate(pattern) if term is ELLIPSIS or term is STAR), None)
        if (many is None and spread != 1) or spread < 0:
            raise Opaque(f"its input {index} has rank {len(axes)}, which does not fit {self.coupling.equation!r}")
        terms = list(pattern)
        if many is not None:
            if pattern[many] is ELLIPSIS:
                self.leading.append(axes[many : many + spread])
                terms[many : many + 1] = [ELLIPSIS] * spread
            else:
                self.stars = max(self.stars, spread)
                terms[many : many + 1] = [STAR] * spread
        pairs = zip(range(len(axes)), terms, axes, strict=True)
        return [(place, term, axis) for place, term, axis in pairs if term is not ELLIPSIS]

    def _expect_unit(self, axis: Axis, index: int) -> None:
        if axis.size != 1:
            raise Opaque(f"its input {index} has an axis of size {axis.size} where 1 was expected")

    def _bind(self, name: str, axis: Axis) -> None:
        if name in self.words:
            self.site.equate(self.words[name], axis)
        else:
            self.words[name] = axis

    def _solve_compounds(self) -> None:
        """Equate compound axes, taking first those of which at most one word is still unknown."""
        waiting = self.compounds
        while waiting:
            later = []
            for term, axis in waiting:
                unknown = [name for name in dict.fromkeys(_words(term)) if name not in self.words]
                if len(unknown) > 1:
                    later.append((term, axis))
                    continue
                if unknown:
                    self.words[unknown[0]] = fresh(self._missing_size(term, axis.size, unknown[0]))
                self.site.equate(self._build(term), axis)
            if len(later) == len(waiting):
                raise RuleError(f"the sizes in {self.coupling.equation!r} are not determined; give them in `sizes`")
            waiting = later

    def _missing_size(self, term: Term, size: int, name: str) -> int:
        if isinstance(term, Word):
            return size
        for part in term.parts:
            if name not in _words(part):
                known = self._build(part).size
                size, rest = divmod(size, max(known, 1)) if term.kind == "product" else (size - known, 0)
                if rest or size < 0:
                    raise Opaque(f"its sizes do not fit {self.coupling.equation!r}")
        inner = next(part for part in term.parts if name in _words(part))
        return self._missing_size(inner, size, name)

    def _build(self, term: Term) -> Axis:
        if isinstance(term, Word):
            return self.words[term.name]
        parts = [self._build(part) for part in term.parts]
        return product(*parts) if term.kind == "product" else total(*parts)

    def _write(self, index: int, pattern: TensorPattern, leading: Axes, written: set[str]) -> None:
        site = self.site
        if isinstance(pattern, str):
            axes = site.fresh_output(index)
            if pattern == "?":
                site.fix(axes, "the order of its entries matters")
            site.set(index, axes)
            return
        sizes = site.output_sizes(index)
        result: list[Axis] = []
        for term in pattern:
            if term is ELLIPSIS:
                result.extend(leading)
            elif term is STAR:
                count = self.stars if sizes is None else len(sizes) - len(pattern) + 1
                result.extend(self._positions(index, sizes, len(result), count))
            elif term is OWN:
                result.extend(self._positions(index, sizes, len(result), 1))
            elif term is UNIT:
                result.append(ONE)
            else:
                written.update(_words(term))
                result.append(self._output_axis(term, sizes, len(result)))
        site.set(index, result)

    def _positions(self, index: int, sizes: list[int] | None, start: int, count: int) -> list[Axis]:
        """Make axes of an output whose order carries meaning."""
        symbols, name = self.site.facts.symbols, self.site.node.outputs[index].name
        made = [
            fresh(sizes[place] if sizes is not None and place < len(sizes) else symbols.unknown(f"{name}[{place}]"))
            for place in range(start, start + count)
        ]
        self.site.fix(made, POSITIONS)
        return made

    def _output_axis(self, term: Term, sizes: list[int] | None, place: int) -> Axis:
        unknown = [name for name in dict.fromkeys(_words(term)) if name not in self.words]
        if unknown:
            if len(unknown) > 1 or sizes is None or place >= len(sizes):
                raise Opaque(f"the size of its output axis {place} is not known")
            self.words[unknown[0]] = fresh(self._missing_size(term, sizes[place], unknown[0]))
        return self._build(term)

    def _mark(self, written: set[str]) -> None:
        coupling, site = self.coupling, self.site
        for name in coupling.fixed:
            self._lose(name, FIXED, POSITIONS)
        for name in coupling.statistics:
            self._lose(name, Freedom.PERMUTE, "its statistics run over it")
        for name in coupling.sums:
            for index, position, _ in self.seen.get(name, ()):
                site.sums_over(self.words[name], index, position)
        for name in self.seen.keys() - written - set(coupling.sums) - set(coupling.fixed) - set(coupling.statistics):
            self._lose(name, FREE ^ Freedom.SELECT, "it is reduced away by other means than a sum")
        for attribute, text in coupling.states.items():
            site.states(attribute_size(site.node, attribute, self._build(parse_axis(text))))

    def _lose(self, name: str, keeps: Freedom, why: str) -> None:
        if name in self.words:
            self.site.keep(self.words[name], keeps, why)


def _words(term: Term) -> list[str]:
    if isinstance(term, Word):
        return [term.name]
    return [name for part in term.parts for name in _words(part)]
