"""Which matrices can move through a graph along a dimension: diagonals (scale), orthogonal ones (rotate), any (linear).

Every occurrence of a dimension has an exponent `e`: its tensor is multiplied along it by `s ** e`, for a diagonal `s`;
by `A` where e = 1 and by the inverse of its transpose where e = -1, for a matrix. Nodes are equations between the
exponents (`bevel.ir.action`); the graph's inputs and outputs, and all that is no float, have the exponent 0;
initializers are free. A solution that is not zero everywhere is a motion: the function stays as it is.

    h = x @ up                e(up) = e(h)
    r = Relu(h)               e(r) = e(h), for diagonals only
    y = r @ down              e(r) + e(down) = 0           up: +1, down: -1

What is multiplied entry by entry and then only summed up is an inner product, as in a matrix product.

A rotation passes more than that. A norm lets it through once its gain is ones, and so does any multiplication by a
vector of weights; squares that are summed up stay the same. A rotation that keeps the mean, whose rows add up to one,
also passes what subtracts the mean or adds one number to all entries.

Nothing is read before something is asked, and then every node once; the cost does not depend on sizes of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import onnx_ir as ir

from bevel.ir.action import LINEAR, Action
from bevel.ir.axes import Dim, resolve
from bevel.ir.coupling import Freedom, find_action
from bevel.ir.crossing import MOTIONS, Along, Crossing, Equation, Norm, Sides, at
from bevel.ir.exponents import solutions
from bevel.ir.passages import pairs, passages
from bevel.ir.site import Facts, Opaque, Site
from bevel.ir.strands import UNALIGNED, Occurrence, Strand, occurrences, strands

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Motion:
    """Exponents by occurrence, those that are not zero, of a matrix that can move.

    `folds` lists gains that have to be ones before: they first move into what follows them, as a scale. With
    `keeps_mean` only a rotation moves whose rows add up to one.
    """

    exponents: Mapping[Occurrence, int]
    folds: tuple[ir.Value, ...] = ()
    keeps_mean: bool = False

    @property
    def initializers(self) -> dict[Occurrence, int]:
        """The exponents of initializers: what an edit has to multiply."""
        return {each: power for each, power in self.exponents.items() if each.value.is_initializer()}

    def __str__(self) -> str:
        return ", ".join(f"{each}: {power:+d}" for each, power in self.initializers.items())


class Symmetry:
    """The motions of each dimension of a graph, found when they are asked for."""

    def __init__(self, model: ir.Model, facts: Facts, *, interface: bool) -> None:
        self._model = model
        self._facts = facts
        self._interface = interface
        self._found: dict[tuple[Dim, Freedom], list[Motion]] = {}

    def motions(self, dim: Dim, kind: Freedom) -> list[Motion]:
        """Return independent motions along a dimension; each combination of scales is one too."""
        if (dim, kind) not in self._found:
            self._found[dim, kind] = self._rotations(dim) if kind is Freedom.ROTATE else self._solved(dim, kind)
        return self._found[dim, kind]

    def why(self, dim: Dim, kind: Freedom) -> tuple[str, ...]:
        """Give the reasons why no motion exists, the blocking nodes by name; nothing if one does."""
        if self.motions(dim, kind):
            return ()
        along = self._along.get(dim, Along())
        said = [each.why for each in along.equations if kind in each.kinds and len(each.sides) == 1]
        if kind is Freedom.ROTATE:
            said += [norm.why for norm in along.norms]
        return tuple(dict.fromkeys(said)) or ("no tensor of floats has it",)

    def signed(self, motion: Motion) -> bool:
        """Say whether a scale may be negative too: nothing that it crosses is linear for positive factors only."""
        values = {each.value for each in motion.exponents}
        nodes = {node for value in values for node in (value.producer(), *(use.node for use in value.uses())) if node}
        return not any(action_of(self._site(node)).positive for node in nodes)

    def _site(self, node: ir.Node) -> Site:
        return Site(node, self._facts, self._model.opset_imports.get(node.domain, 1))

    @cached_property
    def _along(self) -> dict[Dim, Along]:
        return _Reading(self._model, self._facts, self._interface).run()

    def _solved(self, dim: Dim, kind: Freedom) -> list[Motion]:
        equations = self._along.get(dim, Along()).equations
        return [Motion(found) for found in solutions(each.sides for each in equations if kind in each.kinds)]

    def _rotations(self, dim: Dim) -> list[Motion]:
        """Solve for orthogonal matrices, whose inverse transpose they are: signs do not matter.

        Those that keep the mean are bound by less; a solution that meets what they are spared can be nothing else.
        """
        along = self._along.get(dim, Along())
        equations = [each for each in along.equations if Freedom.ROTATE in each.kinds]
        sides = [_unsigned(each.sides) for each in equations if not each.of_means]
        crossed = [norm for norm in along.norms if self._folds(norm, dim)]
        for norm in along.norms:
            sides += _passed(norm) if norm in crossed else [((each, 1),) for each in norm.strand.occurrences]
        spared = {each for equation in equations if equation.of_means for each, _ in equation.sides}
        spared.update(each for norm in crossed if norm.centred for each in norm.turning)
        return [Motion(each, _folded(each, crossed), not spared.isdisjoint(each)) for each in solutions(sides)]

    def _folds(self, norm: Norm, dim: Dim) -> bool:
        """Say whether the gain can become ones by a scale that leaves the other gains as they are."""
        gain, *more = norm.strand.inputs[norm.gain]
        whole = [resolve(axis) for axis in self._facts.of(gain.value) or ()] == [dim]
        if more or not whole or not gain.value.is_initializer():
            return False
        others = [
            each for other in self._along[dim].norms if other is not norm for each in other.strand.inputs[other.gain]
        ]
        scales = self.motions(dim, Freedom.SCALE)
        return any(gain in each.exponents and not any(other in each.exponents for other in others) for each in scales)


def _unsigned(sides: Sides) -> Sides:
    return sides if len(sides) == 1 else ((sides[0][0], 1), (sides[1][0], -1))


def _passed(norm: Norm) -> Iterator[Sides]:
    """State that what is normalised, what is added and what comes out turn alike, while the gain stays."""
    first, *others = norm.turning
    yield from (((first, 1), (each, -1)) for each in others)
    yield from (((each, 1),) for each in norm.strand.inputs[norm.gain])


def _folded(exponents: Mapping[Occurrence, int], norms: Sequence[Norm]) -> tuple[ir.Value, ...]:
    """Return the gains that stand in the way of what turns."""
    gains = [norm.strand.inputs[norm.gain][0].value for norm in norms if norm.strand.outputs[0][0] in exponents]
    return tuple(dict.fromkeys(gains))


class _Reading:
    """Reads every node once and collects equations by dimension."""

    def __init__(self, model: ir.Model, facts: Facts, interface: bool) -> None:
        self.model = model
        self.facts = facts
        self.interface = interface
        self.along: dict[Dim, Along] = {}
        self.met: set[ir.Value] = set()

    def run(self) -> dict[Dim, Along]:
        graph = self.model.graph
        if self.interface:
            for what, values in (("input", graph.inputs), ("output", graph.outputs)):
                for value in values:
                    self._still(value, f"graph {what} {value.name!r}")
        for node in ir.traversal.RecursiveGraphIterator(graph):
            self._node(node)
        return self.along

    def _node(self, node: ir.Node) -> None:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value not in self.met:
                self.met.add(value)
                if value.dtype not in _FLOATS:
                    self._still(value, f"{value.name!r} holds no floats")
        site = Site(node, self.facts, self.model.opset_imports.get(node.domain, 1))
        if bodies := [each.as_graph() for each in node.attributes.values() if each.type is ir.AttributeType.GRAPH]:
            self._around(site, bodies)
            return
        action = action_of(site)
        if action.blind:
            return
        for strand in strands(site):
            along = self.along.setdefault(strand.dim, Along())
            Crossing(node, action, strand, self.facts).state(along, summed=partial(self._summed, node, strand))

    def _summed(self, node: ir.Node, strand: Strand) -> bool:
        """Say whether all that reads the output of a node sums it up along the strand."""
        inside = len(node.outputs) == 1 and 0 in strand.outputs and not node.outputs[0].is_graph_output()
        return inside and all(self._sums_away(use.node, strand.dim) for use in node.outputs[0].uses())

    def _sums_away(self, node: ir.Node, dim: Dim) -> bool:
        site = Site(node, self.facts, self.model.opset_imports.get(node.domain, 1))
        return action_of(site) == LINEAR and not any(each.outputs for each in strands(site) if each.dim is dim)

    def _around(self, site: Site, bodies: Sequence[ir.Graph]) -> None:
        """Let values be multiplied alike outside and inside the graphs of a node; else let nothing pass."""
        try:
            found = passages(site)
        except Opaque as reason:
            inner = [value for body in bodies for value in (*body.inputs, *body.outputs)]
            for value in (*site.node.inputs, *site.node.outputs, *inner):
                if value is not None:
                    self._still(value, at(site.node, str(reason)))
            return
        for passage in found:
            same, alone = pairs(passage, self.facts)
            for pair in same:
                self._state(pair.dim, Equation(MOTIONS, ((pair.outer, 1), (pair.inner, -1)), ""))
            for occurrence, dim in alone:
                self._state(dim, Equation(MOTIONS, ((occurrence, 1),), at(site.node, UNALIGNED)))

    def _still(self, value: ir.Value, why: str) -> None:
        for occurrence, dim in occurrences(value, self.facts):
            self._state(dim, Equation(MOTIONS, ((occurrence, 1),), why))

    def _state(self, dim: Dim, equation: Equation) -> None:
        self.along.setdefault(dim, Along()).equations.append(equation)


def action_of(site: Site) -> Action:
    """Return how a node acts on numbers; nothing passes one that its rule cannot read."""
    found = find_action(site.node.domain, site.node.op_type)
    if isinstance(found, Action):
        return found
    try:
        return found(site)
    except Opaque:
        return Action()
