"""Read a graph once and find its dimensions: which tensor axes change together, what they allow, and why not more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from bevel.errors import UsageError, nearest
from bevel.ir import control, integers
from bevel.ir.axes import Axis, Dim, atoms, paths, resolve
from bevel.ir.collector import resting
from bevel.ir.coupling import FIXED, FREE, Freedom, find_rule, load_rules
from bevel.ir.crossing import MOTIONS
from bevel.ir.equation import couple
from bevel.ir.site import STRUCTURAL, Axes, Facts, Mark, Opaque, Site
from bevel.ir.sizes import Symbols, is_symbolic
from bevel.ir.symmetry import Motion, Symmetry

# A symbol that turns out to have a size (it meets a weight) is put in and everything is read again.
_MOST_READINGS = 4


@dataclass(frozen=True)
class Member:
    """An initializer's axis that holds the group's dimension, and at which place within the axis."""

    value: ir.Value
    axis: int
    path: tuple[int, ...]

    def __str__(self) -> str:
        place = ".".join(map(str, (self.axis, *self.path)))
        return f"{self.value.name}[{place}]"


@dataclass(frozen=True, eq=False)
class Group:
    """A dimension with all that has it: the unit of every edit."""

    name: str
    size: int
    dim: Dim = field(repr=False)
    members: tuple[Member, ...] = field(repr=False)
    marks: tuple[Mark, ...] = field(repr=False)
    symmetry: Symmetry = field(repr=False)

    @cached_property
    def freedom(self) -> Freedom:
        """What every occurrence of the dimension allows of `permute` and `select`."""
        freedom = FREE
        for keeps in {mark.keeps for mark in self.marks}:
            freedom &= keeps
        return freedom

    def motions(self, kind: Freedom | str) -> list[Motion]:
        """Return what a scale, rotation or linear map of the dimension multiplies, one independent motion each."""
        return self.symmetry.motions(self.dim, _freedom(kind))

    def allows(self, kind: Freedom | str) -> bool:
        """Say whether an edit (`permute`, `select`, `scale`, `rotate`, `linear`) leaves the function as promised."""
        wanted = _freedom(kind)
        return wanted & FREE in self.freedom and all(self.motions(each) for each in wanted & MOTIONS)

    def why(self, kind: Freedom | str) -> tuple[str, ...]:
        """Give the reasons why an edit is not allowed, the blocking node by name."""
        wanted = _freedom(kind)
        marks = [_reason(mark) for mark in self.marks if wanted & FREE not in mark.keeps]
        return tuple(dict.fromkeys([*marks, *self._why_still(wanted)]))

    def _why_still(self, wanted: Freedom) -> Iterator[str]:
        for each in wanted & MOTIONS:
            yield from self.symmetry.why(self.dim, each)

    def __str__(self) -> str:
        allowed = " ".join(kind.name.lower() for kind in Freedom if kind.name and self.allows(kind))
        reasons = self.why(Freedom.SELECT)
        note = f"  {reasons[0]}" if reasons else ""
        tensors = len({member.value for member in self.members})
        return f"{self.name:<40} {self.size:>6}  {allowed or 'fixed':<34}{note}  ({tensors} tensors)"


def _freedom(kind: Freedom | str) -> Freedom:
    return Freedom[kind.upper()] if isinstance(kind, str) else kind


def _reason(mark: Mark) -> str:
    return mark.why if mark.node is None else f"{mark.node.op_type} {mark.node.name!r}: {mark.why}"


class Analysis:
    """The dimensions of one model, as it stood when it was read."""

    def __init__(self, model: ir.Model, facts: Facts, *, interface: bool) -> None:
        self.model = model
        self.facts = facts
        self.symmetry = Symmetry(model, facts, interface=interface)

    def axes(self, value: ir.Value) -> Axes | None:
        """Return the axes of a value, or None where its rank is not known."""
        return self.facts.axes.get(value)

    @cached_property
    def groups(self) -> list[Group]:
        """Every dimension that some initializer has, in the order in which the graph meets them.

        Kernel taps and the axes of shape tensors are left out: nothing can be done to them.
        """
        with resting():
            return list(_collect(self))

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    def __getitem__(self, name: str) -> Group:
        if name not in self.by_name:
            raise UsageError(f"there is no group {name!r}", remedy=nearest(name, self.by_name))
        return self.by_name[name]

    @cached_property
    def marks(self) -> Mapping[Dim, Sequence[Mark]]:
        """What was said about each dimension."""
        found: dict[Dim, list[Mark]] = {}
        for mark in self.facts.marks:
            for atom in dict.fromkeys(atoms(mark.axis)):
                found.setdefault(atom, []).append(mark)
        return found


def groups(model: ir.Model) -> list[Group]:
    """Find the groups of tensor axes that change together.

    The model is in canonical form, as `bevel.load` gives it. Nothing is read but small integer constants.
    """
    return analyse(model).groups


def analyse(model: ir.Model, *, interface: bool = True) -> Analysis:
    """Read a graph and find its dimensions; with `interface`, the axes of its inputs and outputs are fixed."""
    load_rules()
    symbols = Symbols()
    with resting():
        for _ in range(_MOST_READINGS):
            facts = Facts(symbols)
            _Reading(model, facts, interface).run()
            if not _learn(facts):
                break
            symbols = symbols.restart()
    return Analysis(model, facts, interface=interface)


def _learn(facts: Facts) -> bool:
    """Note which symbols met the size of a weight: the model could not run with any other."""
    meetings = [
        (symbol.size, known)
        for conflict in facts.solver.conflicts
        for symbol, known in (conflict, reversed(conflict))
        if is_symbolic(symbol.size) and not is_symbolic(known.size) and known.size > 1
    ]
    weights = _weight_dimensions(facts) if meetings else frozenset()
    learnt = [facts.symbols.learn(size, known.size) for size, known in meetings if weights.issuperset(atoms(known))]
    return any(learnt)


def _weight_dimensions(facts: Facts) -> frozenset[Dim]:
    return frozenset(
        atom
        for value, axes in facts.axes.items()
        if axes and value.is_initializer() and value.const_value is not None
        for axis in axes
        for atom in atoms(axis)
    )


class _Reading:
    """One pass over a graph and the graphs inside it."""

    def __init__(self, model: ir.Model, facts: Facts, interface: bool) -> None:
        self.model = model
        self.facts = facts
        self.interface = interface
        self.settled = 0

    def run(self) -> None:
        graph = self.model.graph
        if self.interface:
            self._fix_values(graph.inputs, "graph input")
        self.graph(graph)
        if self.interface:
            self._fix_values(graph.outputs, "graph output")

    def graph(self, graph: ir.Graph) -> None:
        """Read the nodes of a graph in order."""
        for node in graph:
            self._node(node)
            integers.propagate(node, self.facts)

    def _node(self, node: ir.Node) -> None:
        site = Site(node, self.facts, self.model.opset_imports.get(node.domain, 1))
        body = control.BODIES.get(node.op_type) if node.domain == "" else None
        rule = find_rule(node.domain, node.op_type)
        try:
            if body is not None:
                body(site, self.graph)
            elif rule is None:
                raise Opaque(f"no rule is known for {node.domain + '::' if node.domain else ''}{node.op_type}")
            else:
                coupling = rule(site)
                if coupling is not None:
                    couple(site, coupling)
                self._fix_unheard(site)
        except Opaque as reason:
            self._leave_fixed(site, str(reason))
        self._settle_conflicts(node)

    def _fix_unheard(self, site: Site) -> None:
        """Fix the axes of inputs that a rule passed over in silence."""
        for index, value in enumerate(site.node.inputs):
            if value is not None and index not in site.heard:
                site.fix(self.facts.of(value) or (), "its rule does not speak of this input")

    def _leave_fixed(self, site: Site, why: str) -> None:
        """Fix every axis that touches a node of which too little is known."""
        for value in (*site.node.inputs, *_captured(site.node)):
            axes = None if value is None else self.facts.of(value)
            if axes:
                site.fix(axes, why)
        for output in site.node.outputs:
            axes = self.facts.of(output)
            if axes:
                site.fix(axes, why)

    def _settle_conflicts(self, node: ir.Node) -> None:
        conflicts = self.facts.solver.conflicts
        for left, right in conflicts[self.settled :]:
            why = f"its axes {left!r} and {right!r} have no common structure"
            self.facts.marks.append(Mark(left, FIXED, why, node))
            self.facts.marks.append(Mark(right, FIXED, why, node))
        self.settled = len(conflicts)

    def _fix_values(self, values: Sequence[ir.Value], what: str) -> None:
        for value in values:
            for axis in self.facts.of(value) or ():
                self.facts.marks.append(Mark(axis, FIXED, f"{what} {value.name!r}", None))


def _captured(node: ir.Node) -> Iterator[ir.Value | None]:
    """Yield what the graphs inside a node use, outer values among them."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
            body = attribute.as_graph()
            yield from body.outputs
            for inner in ir.traversal.RecursiveGraphIterator(body):
                yield from inner.inputs


def _collect(analysis: Analysis) -> Iterator[Group]:
    members: dict[Dim, list[Member]] = {}
    known: dict[Axis, list[tuple[tuple[int, ...], Dim]]] = {}  # many tensors share an axis
    for value in _initializers(analysis):
        for axis, expression in enumerate(analysis.facts.axes[value] or ()):
            whole = resolve(expression)
            if whole not in known:
                known[whole] = list(paths(whole))
            for path, atom in known[whole]:
                members.setdefault(atom, []).append(Member(value, axis, path))
    for atom, found in members.items():
        marks = tuple(analysis.marks.get(atom, ()))
        if atom.size > 1 and STRUCTURAL.isdisjoint(mark.why for mark in marks):
            yield Group(str(_namesake(found)), atom.size, atom, tuple(found), marks, analysis.symmetry)


def _namesake(members: Sequence[Member]) -> Member:
    """Choose what a group is called after: the first matrix or kernel, for want of one the first vector."""
    return next((member for member in members if member.value.shape and len(member.value.shape) > 1), members[0])


def _initializers(analysis: Analysis) -> Iterator[ir.Value]:
    """Yield the initializers in the order in which the graph uses them."""
    return (value for value in analysis.facts.axes if value.is_initializer() and value.const_value is not None)
