"""What one node makes of the exponents of a dimension: equations, and gains that stand in the way of rotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import onnx_ir as ir

from bevel.ir.action import LINEAR, Action, Term
from bevel.ir.coupling import Freedom
from bevel.ir.operands import operands
from bevel.ir.site import Facts
from bevel.ir.strands import Occurrence, Strand, alternatives

MIXING = Freedom.ROTATE | Freedom.LINEAR
MOTIONS = Freedom.SCALE | MIXING
_TURNED_GAIN = (
    "a rotation does not commute with its gain, which is no initializer or cannot be folded into what follows"
)
_ONE_BY_ONE = "it works on each entry by itself"
Sides = tuple[tuple[Occurrence, int], ...]


class Equation(NamedTuple):
    """For some of scale, rotate and linear: the sum of exponents times factors is zero, because of a node.

    What is only `of_means` does not bind a rotation that keeps the mean.
    """

    kinds: Freedom
    sides: Sides
    why: str
    of_means: bool = False


class Gain(NamedTuple):
    """Which input of a node is a gain, which one it multiplies, and whether the mean is taken off that first."""

    gain: int
    turned: int
    centred: bool


@dataclass
class Norm:
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
class Along:
    """What was said about one dimension."""

    equations: list[Equation] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)


def at(node: ir.Node, why: str) -> str:
    """Say why, with the node that is the reason."""
    return f"{node.op_type} {node.name!r}: {why}"


@dataclass
class Crossing:
    """One strand of one node: states what the node's action makes of the exponents."""

    node: ir.Node
    action: Action
    strand: Strand
    facts: Facts

    def state(self, along: Along, *, summed: Callable[[], bool]) -> None:
        """Add the equations of the strand to those of its dimension; `summed`: only sums over it read the output."""
        gain = self._gain()
        factors = None if gain else self._multiplied()
        if gain:
            along.norms.append(Norm(self.strand, *gain, at(self.node, _TURNED_GAIN)))
            along.equations += [each._replace(kinds=each.kinds & ~Freedom.ROTATE) for each in self._equations()]
        elif factors and summed():
            along.equations += [each._replace(kinds=each.kinds & ~MIXING) for each in self._equations()]
            along.equations += self._against(*factors, MIXING)
        else:
            along.equations += self._equations()

    def _multiplied(self) -> tuple[Occurrence, Occurrence] | None:
        """Return what the node multiplies entry by entry, if it does nothing else."""
        terms, inputs, outputs = self._terms(), self.strand.inputs, self.strand.outputs
        if len(terms) != 1 or len(terms[0].times) != 2 or terms[0].over or self.action.moves or self.action.inner:
            return None
        left, right = terms[0].times
        whole = not self.strand.fixed and set(outputs) == {0} and set(inputs) == {left, right}
        if not whole or any(len(side) > 1 for side in (*inputs.values(), *outputs.values())):
            return None
        return inputs[left][0], inputs[right][0]

    def _gain(self) -> Gain | None:
        """Return the gain that the node multiplies by along this strand, if there is one and nothing else is done."""
        inputs, outputs, turned = self.strand.inputs, self.strand.outputs, self.action.turned
        sides = [*inputs.values(), *outputs.values()]
        blocked = self.strand.fixed or self.action.inner is not None
        if blocked or set(outputs) != {0} or not all(self._one_axis(side) for side in sides):
            return None
        if turned is None:
            return self._plain_gain()
        terms = [term.times for term in self._terms()]
        carrying = {index for term in terms for index in term}
        whole = turned in inputs and set(inputs) == {turned, *carrying} and all(len(term) == 1 for term in terms)
        return Gain(terms[0][0], turned, self.action.centred) if whole else None

    def _plain_gain(self) -> Gain | None:
        """Return the operand of a product that is a weight, if the other one is none."""
        terms, inputs = self._terms(), sorted(self.strand.inputs)
        if self.action.moves or len(terms) != 1 or terms[0].over or sorted(terms[0].times) != inputs:
            return None
        weights = [index for index in inputs if self._is_weight(index)]
        others = [index for index in inputs if not self._is_weight(index)]
        return Gain(weights[0], others[0], False) if len(weights) == len(others) == 1 else None

    def _is_weight(self, index: int) -> bool:
        value = self.node.inputs[index]
        return value is not None and value.is_initializer()

    @cached_property
    def _inputs(self) -> Mapping[int, list[Occurrence]]:
        return operands(self.strand, self.action, self.facts)

    @property
    def _given(self) -> list[int]:
        return [index for index, value in enumerate(self.node.inputs) if value is not None]

    def _terms(self) -> list[Term]:
        return self.action.terms_of(self._given)

    def _inner(self) -> list[list[Term]]:
        """Return the terms of both sides of an inner product."""
        return [self.action.having(side, self._given) for side in self.action.inner or ()]

    def _carrying(self, terms: Iterable[Term]) -> list[Term]:
        return [term for term in terms if self._operands(term)]

    def _operands(self, term: Term) -> list[int]:
        return [index for index in (*term.times, *term.over) if index in self._inputs]

    def _equations(self) -> Iterator[Equation]:
        strand, terms = self.strand, self._terms()
        if strand.fixed:
            return self._zero(strand.occurrences, strand.fixed)
        if not terms:
            return self._zero(strand.occurrences, "it is not linear")
        if not all(self._one_axis(side) for side in (*self._inputs.values(), *strand.outputs.values())):
            return self._zero(strand.occurrences, "it holds the dimension on two axes at once")
        return self._through(terms)

    def _through(self, terms: Sequence[Term]) -> Iterator[Equation]:
        """State what passes where nothing stands in the way."""
        strand, action = self.strand, self.action
        inner = self._inner()
        in_terms = {index for term in (*terms, *chain(*inner)) for index in (*term.times, *term.over)}
        controls = [each for index, side in self._inputs.items() if index not in in_terms for each in side]
        yield from self._zero(controls, "it is not linear in this operand")
        if controls or action.positive or (self._carrying(chain(*inner)) and not strand.summed):
            yield from self._zero(strand.occurrences, _ONE_BY_ONE, MIXING)
        for side in self._inputs.values():
            yield from self._equal(side)
        yield from self._out(terms)
        if inner:
            yield from self._scores(*inner)

    def _out(self, terms: Sequence[Term]) -> Iterator[Equation]:
        """State the exponents of outputs."""
        outputs, others = self.strand.outputs, dict(self.action.others)
        count = len(self.node.outputs) if self.action.outputs is None else self.action.outputs
        following = [each for index, side in outputs.items() if index < count for each in side]
        apart = [each for index, side in outputs.items() if index >= count and index not in others for each in side]
        yield from self._zero(apart, "this output is computed in another way")
        if following:
            yield from self._equal(following)
            yield from self._kept(following[0], terms)
        elif not self.action.moves:
            yield from self._summed(self._carrying(terms))
        for index in others.keys() & outputs.keys():
            yield from self._equal(outputs[index])
            yield from self._kept(outputs[index][0], self.action.having(others[index], self._given))

    def _scores(self, *sides: Sequence[Term]) -> Iterator[Equation]:
        """State that what an inner product is made of leaves it as it is."""
        found = [[self._factors(term) for term in self._carrying(side)] for side in sides]
        inside = [factors for factors in chain(*found) if len(factors) > 1]  # summed over within a side
        for factors in inside:
            yield from self._product(factors, mixes=True)
        left, right = ([factors[0][0] for factors in side if factors not in inside] for side in found)
        if not (left and right) or len(left) + len(right) < sum(map(len, sides)):
            yield from self._zero([*left, *right], "not all of its inner products have this axis")
            return
        for one, *more in (left, right):
            yield from self._equal([one, *more])
        yield from self._against(left[0], right[0], MOTIONS)

    def _against(self, left: Occurrence, right: Occurrence, kinds: Freedom) -> Iterator[Equation]:
        """State that the inner product of two operands stays as it is; rotations leave that with itself alone."""
        if left == right:
            yield from self._zero([left], "it multiplies this operand by itself", kinds & ~Freedom.ROTATE)
        else:
            yield Equation(kinds, ((left, 1), (right, 1)), "")

    def _kept(self, output: Occurrence, terms: Sequence[Term]) -> Iterator[Equation]:
        """State the exponent of the output, which is that of every term."""
        carrying = self._carrying(terms)
        if not carrying or (len(carrying) < len(terms) and not self.action.moves):
            why = "not all that it adds up has this axis"
            yield from self._zero(self.strand.occurrences, why, MOTIONS, of_means=bool(carrying))
        for term in carrying:
            alone = len(self._operands(term)) == 1 and not term.over
            yield from self._product(((output, -1), *self._factors(term)), mixes=alone)

    def _summed(self, carrying: Sequence[Term]) -> Iterator[Equation]:
        """State that exponents cancel where products are summed."""
        for term in carrying:
            pair = len(self._operands(term)) == 2 and not term.over
            yield from self._product(self._factors(term), mixes=pair, mean=self.action == LINEAR)

    def _factors(self, term: Term) -> Sides:
        """Return one occurrence for each operand that has the dimension, all of which are equal, and its power."""
        powers = [(index, 1) for index in term.times] + [(index, -1) for index in term.over]
        return tuple([(self._inputs[index][0], power) for index, power in powers if index in self._inputs])

    def _product(self, sides: Sides, *, mixes: bool, mean: bool = False) -> Iterator[Equation]:
        if len(sides) == 1:
            yield from self._zero([sides[0][0]], "it sums over it", MOTIONS, of_means=mean)
            return
        if mixes:
            yield Equation(MOTIONS, sides, "")
            return
        yield Equation(Freedom.SCALE, sides, "")
        yield from self._zero([each for each, _ in sides], _ONE_BY_ONE, MIXING)

    def _equal(self, side: Sequence[Occurrence]) -> Iterator[Equation]:
        for other in side[1:]:
            yield Equation(MOTIONS, ((side[0], 1), (other, -1)), "")

    def _zero(
        self, side: Iterable[Occurrence], why: str, kinds: Freedom = MOTIONS, *, of_means: bool = False
    ) -> Iterator[Equation]:
        for each in side:
            yield Equation(kinds, ((each, 1),), at(self.node, why), of_means)

    def _one_axis(self, side: Sequence[Occurrence]) -> bool:
        """Say whether occurrences stand on one axis, in different parts of a sum: no entry has the dimension twice."""
        first = side[0]
        axes = self.facts.of(first.value) or ()
        return all(
            each.axis == first.axis and alternatives(axes[first.axis], first.path, each.path) for each in side[1:]
        )
