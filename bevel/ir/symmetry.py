"""Which matrices can move through a graph along a dimension: diagonals (scale), orthogonal ones (rotate), any (linear).

Every occurrence of a dimension has an exponent `e`: its tensor is multiplied along it by `s ** e`, for a diagonal `s`;
by `A` where e = 1 and by the inverse of its transpose where e = -1, for a matrix. Nodes are equations between the
exponents (`bevel.ir.action`); the graph's inputs and outputs, and all that is no float, have the exponent 0;
initializers are free. A solution that is not zero everywhere is a motion: the function stays as it is.

    h = x @ up                e(up) = e(h)
    r = Relu(h)               e(r) = e(h), for diagonals only
    y = r @ down              e(r) + e(down) = 0           up: +1, down: -1

A rotation passes more than that. A norm lets it through once its gain is ones, and so does any multiplication by a
vector of weights; squares that are summed up stay the same. A rotation that keeps the mean, whose rows add up to one,
also passes what subtracts the mean or adds one number to all entries.

Nothing is read before something is asked, and then every node once; the cost does not depend on sizes of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import onnx_ir as ir

from bevel.ir.action import LINEAR, Action, Term
from bevel.ir.axes import Dim, resolve
from bevel.ir.coupling import Freedom, find_action
from bevel.ir.exponents import solutions
from bevel.ir.site import Facts, Opaque, Site
from bevel.ir.strands import Occurrence, Strand, alternatives, occurrences, strands

MIXING = Freedom.ROTATE | Freedom.LINEAR
MOTIONS = Freedom.SCALE | MIXING
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_TURNED_GAIN = (
    "a rotation does not commute with its gain, which is no initializer or cannot be folded into what follows"
)
Sides = tuple[tuple[Occurrence, int], ...]


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


class _Equation(NamedTuple):
    """For some of scale, rotate and linear: the sum of exponents times factors is zero, because of a node.

    What is only `of_means` does not bind a rotation that keeps the mean.
    """

    kinds: Freedom
    sides: Sides
    why: str
    of_means: bool = False


class _Gain(NamedTuple):
    """Which input of a node is a gain, which one it multiplies, and whether the mean is taken off that first."""

    gain: int
    turned: int
    centred: bool


@dataclass
class _Norm:
    """A node that multiplies by a gain along a dimension, after a norm or not, with all of it that the node touches."""

    strand: Strand
    gain: int
    turned: int
    centred: bool
    why: str

    @property
    def turning(self) -> list[Occurrence]:
        """What turns with a rotation: all but the gain."""
        return [each for each in self.strand.occurrences if each not in self.strand.inputs[self.gain]]


@dataclass
class _Along:
    """What was said about one dimension."""

    equations: list[_Equation] = field(default_factory=list)
    norms: list[_Norm] = field(default_factory=list)


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
        along = self._along.get(dim, _Along())
        said = [each.why for each in along.equations if kind in each.kinds and len(each.sides) == 1]
        if kind is Freedom.ROTATE:
            said += [norm.why for norm in along.norms]
        return tuple(dict.fromkeys(said)) or ("no tensor of floats has it",)

    def signed(self, motion: Motion) -> bool:
        """Say whether a scale may be negative too: nothing that it crosses is linear for positive factors only."""
        values = {each.value for each in motion.exponents}
        nodes = {node for value in values for node in (value.producer(), *(use.node for use in value.uses())) if node}
        return not any(_action(self._site(node)).positive for node in nodes)

    def _site(self, node: ir.Node) -> Site:
        return Site(node, self._facts, self._model.opset_imports.get(node.domain, 1))

    @cached_property
    def _along(self) -> dict[Dim, _Along]:
        return _Reading(self._model, self._facts, self._interface).run()

    def _solved(self, dim: Dim, kind: Freedom) -> list[Motion]:
        equations = self._along.get(dim, _Along()).equations
        return [Motion(found) for found in solutions(each.sides for each in equations if kind in each.kinds)]

    def _rotations(self, dim: Dim) -> list[Motion]:
        """Solve for orthogonal matrices, whose inverse transpose they are: signs do not matter.

        Those that keep the mean are bound by less; a solution that meets what they are spared can be nothing else.
        """
        along = self._along.get(dim, _Along())
        equations = [each for each in along.equations if Freedom.ROTATE in each.kinds]
        sides = [_unsigned(each.sides) for each in equations if not each.of_means]
        crossed = [norm for norm in along.norms if self._folds(norm, dim)]
        for norm in along.norms:
            sides += _passed(norm) if norm in crossed else [((each, 1),) for each in norm.strand.occurrences]
        spared = {each for equation in equations if equation.of_means for each, _ in equation.sides}
        spared.update(each for norm in crossed if norm.centred for each in norm.turning)
        return [Motion(each, _folded(each, crossed), not spared.isdisjoint(each)) for each in solutions(sides)]

    def _folds(self, norm: _Norm, dim: Dim) -> bool:
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


def _passed(norm: _Norm) -> Iterator[Sides]:
    """State that what is normalised, what is added and what comes out turn alike, while the gain stays."""
    first, *others = norm.turning
    yield from (((first, 1), (each, -1)) for each in others)
    yield from (((each, 1),) for each in norm.strand.inputs[norm.gain])


def _folded(exponents: Mapping[Occurrence, int], norms: Sequence[_Norm]) -> tuple[ir.Value, ...]:
    """Return the gains that stand in the way of what turns."""
    gains = [norm.strand.inputs[norm.gain][0].value for norm in norms if norm.strand.outputs[0][0] in exponents]
    return tuple(dict.fromkeys(gains))


class _Reading:
    """Reads every node once and collects equations by dimension."""

    def __init__(self, model: ir.Model, facts: Facts, interface: bool) -> None:
        self.model = model
        self.facts = facts
        self.interface = interface
        self.along: dict[Dim, _Along] = {}
        self.met: set[ir.Value] = set()

    def run(self) -> dict[Dim, _Along]:
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
            self._still_around(node, bodies)
            return
        action = _action(site)
        if action.blind:
            return
        for strand in strands(site):
            energy = self._summed_squares(node, action, strand)
            along = self.along.setdefault(strand.dim, _Along())
            _Crossing(node, action, strand, self.facts).state(along, energy=energy)

    def _summed_squares(self, node: ir.Node, action: Action, strand: Strand) -> bool:
        """Say whether a node squares its operand and all that reads the squares sums them up along the strand."""
        return _squares(node, action) and all(self._sums_away(use.node, strand.dim) for use in node.outputs[0].uses())

    def _sums_away(self, node: ir.Node, dim: Dim) -> bool:
        site = Site(node, self.facts, self.model.opset_imports.get(node.domain, 1))
        return _action(site) == LINEAR and not any(each.outputs for each in strands(site) if each.dim is dim)

    def _still_around(self, node: ir.Node, bodies: Sequence[ir.Graph]) -> None:
        """Let nothing pass into or out of the graphs inside a node."""
        inner = [value for body in bodies for value in (*body.inputs, *body.outputs)]
        for value in (*node.inputs, *node.outputs, *inner):
            if value is not None:
                self._still(value, _at(node, "nothing passes into its graphs or out of them"))

    def _still(self, value: ir.Value, why: str) -> None:
        for occurrence, dim in occurrences(value, self.facts):
            along = self.along.setdefault(dim, _Along())
            along.equations.append(_Equation(MOTIONS, ((occurrence, 1),), why))


def _action(site: Site) -> Action:
    found = find_action(site.node.domain, site.node.op_type)
    if isinstance(found, Action):
        return found
    try:
        return found(site)
    except Opaque:
        return Action()


def _squares(node: ir.Node, action: Action) -> bool:
    """Say whether a node multiplies one value by itself."""
    if len(node.outputs) != 1 or len(action.terms) != 1 or not isinstance(action.terms, tuple):
        return False
    (term,) = action.terms
    return len(term.times) == 2 and not term.over and len({node.inputs[index] for index in term.times}) == 1


def _at(node: ir.Node, why: str) -> str:
    return f"{node.op_type} {node.name!r}: {why}"


@dataclass
class _Crossing:
    """One strand of one node: states what the node's action makes of the exponents."""

    node: ir.Node
    action: Action
    strand: Strand
    facts: Facts

    def state(self, along: _Along, *, energy: bool) -> None:
        """Add the equations of the strand to those of its dimension; `energy` is what no rotation changes."""
        gain = self._gain()
        if gain:
            along.norms.append(_Norm(self.strand, *gain, _at(self.node, _TURNED_GAIN)))
        if gain or energy:
            along.equations += [each._replace(kinds=each.kinds & ~Freedom.ROTATE) for each in self._equations()]
        else:
            along.equations += self._equations()

    def _gain(self) -> _Gain | None:
        """Return the gain that the node multiplies by along this strand, if there is one and nothing else is done."""
        inputs, outputs, turned = self.strand.inputs, self.strand.outputs, self.action.turned
        sides = [*inputs.values(), *outputs.values()]
        if self.strand.fixed or set(outputs) != {0} or not all(self._one_axis(side) for side in sides):
            return None
        if turned is None:
            return self._plain_gain()
        terms = [term.times for term in self._terms()]
        carrying = {index for term in terms for index in term}
        whole = turned in inputs and set(inputs) == {turned, *carrying} and all(len(term) == 1 for term in terms)
        return _Gain(terms[0][0], turned, self.action.centred) if whole else None

    def _plain_gain(self) -> _Gain | None:
        """Return the operand of a product that is a weight, if the other one is none."""
        terms, inputs = self._terms(), sorted(self.strand.inputs)
        if self.action.moves or len(terms) != 1 or terms[0].over or sorted(terms[0].times) != inputs:
            return None
        weights = [index for index in inputs if self._is_weight(index)]
        others = [index for index in inputs if not self._is_weight(index)]
        return _Gain(weights[0], others[0], False) if len(weights) == len(others) == 1 else None

    def _is_weight(self, index: int) -> bool:
        value = self.node.inputs[index]
        return value is not None and value.is_initializer()

    def _carrying(self) -> list[Term]:
        return [term for term in self._terms() if self._operands(term)]

    def _terms(self) -> list[Term]:
        return self.action.terms_of([index for index, value in enumerate(self.node.inputs) if value is not None])

    def _operands(self, term: Term) -> list[int]:
        return [index for index in (*term.times, *term.over) if index in self.strand.inputs]

    def _equations(self) -> Iterator[_Equation]:
        strand, terms = self.strand, self._terms()
        if strand.fixed:
            return self._zero(strand.occurrences, strand.fixed)
        if not terms:
            return self._zero(strand.occurrences, "it is not linear")
        if not all(self._one_axis(side) for side in (*strand.inputs.values(), *strand.outputs.values())):
            return self._zero(strand.occurrences, "it holds the dimension on two axes at once")
        return self._through(terms)

    def _through(self, terms: Sequence[Term]) -> Iterator[_Equation]:
        """State what passes where nothing stands in the way."""
        strand, action = self.strand, self.action
        in_terms = {index for term in terms for index in (*term.times, *term.over)}
        controls = [each for index, side in strand.inputs.items() if index not in in_terms for each in side]
        yield from self._zero(controls, "it is not linear in this operand")
        if controls or action.positive:
            yield from self._zero(strand.occurrences, "it works on each entry by itself", MIXING)
        for side in strand.inputs.values():
            yield from self._equal(side)
        count = len(self.node.outputs) if action.outputs is None else action.outputs
        following = [each for index, side in strand.outputs.items() if index < count for each in side]
        apart = [each for index, side in strand.outputs.items() if index >= count for each in side]
        yield from self._zero(apart, "this output is computed in another way")
        carrying = self._carrying()
        if following:
            yield from self._equal(following)
            yield from self._kept(following[0], carrying, len(terms))
        elif not action.moves:
            yield from self._summed(carrying)

    def _kept(self, output: Occurrence, carrying: Sequence[Term], terms: int) -> Iterator[_Equation]:
        """State the exponent of the output, which is that of every term."""
        if not carrying or (len(carrying) < terms and not self.action.moves):
            why = "not all that it adds up has this axis"
            yield from self._zero(self.strand.occurrences, why, MOTIONS, of_means=bool(carrying))
        for term in carrying:
            alone = len(self._operands(term)) == 1 and not term.over
            yield from self._product(((output, -1), *self._factors(term)), mixes=alone)

    def _summed(self, carrying: Sequence[Term]) -> Iterator[_Equation]:
        """State that exponents cancel where products are summed."""
        for term in carrying:
            pair = len(self._operands(term)) == 2 and not term.over
            yield from self._product(self._factors(term), mixes=pair, mean=self.action == LINEAR)

    def _factors(self, term: Term) -> Sides:
        """Return one occurrence for each operand that has the dimension, all of which are equal, and its power."""
        powers = [(index, 1) for index in term.times] + [(index, -1) for index in term.over]
        return tuple([(self.strand.inputs[index][0], power) for index, power in powers if index in self.strand.inputs])

    def _product(self, sides: Sides, *, mixes: bool, mean: bool = False) -> Iterator[_Equation]:
        if len(sides) == 1:
            yield from self._zero([sides[0][0]], "it sums over it", MOTIONS, of_means=mean)
            return
        if mixes:
            yield _Equation(MOTIONS, sides, "")
            return
        yield _Equation(Freedom.SCALE, sides, "")
        yield from self._zero([each for each, _ in sides], "it works on each entry by itself", MIXING)

    def _equal(self, side: Sequence[Occurrence]) -> Iterator[_Equation]:
        for other in side[1:]:
            yield _Equation(MOTIONS, ((side[0], 1), (other, -1)), "")

    def _zero(
        self, side: Iterable[Occurrence], why: str, kinds: Freedom = MOTIONS, *, of_means: bool = False
    ) -> Iterator[_Equation]:
        for each in side:
            yield _Equation(kinds, ((each, 1),), _at(self.node, why), of_means)

    def _one_axis(self, side: Sequence[Occurrence]) -> bool:
        """Say whether occurrences stand on one axis, in different parts of a sum: no entry has the dimension twice."""
        first = side[0]
        axes = self.facts.of(first.value) or ()
        return all(
            each.axis == first.axis and alternatives(axes[first.axis], first.path, each.path) for each in side[1:]
        )
