"""How an operator acts on the numbers of its operands: what passes through it when they are scaled, or mixed.

An action writes the output as a sum of products of operands; everything else an operator does is left to its equation
between axes:

    y = a + b                terms of one operand each          Add, Sum, Mean
    y = a @ b + c            a product and an addend            MatMul, Gemm, Conv
    y = x * x                an operand twice                   Pow
    y = norm(x) * g + b      x is in no term                    LayerNormalization
    y = p(<q, k>) * v        an inner product                   Attention

An operand that stands in no term has to stay as it is, unless it is part of an inner product that stays as it is.
Without terms nothing passes: that holds for every operator of which nothing is declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Term(NamedTuple):
    """A product of operands, by input, divided by others."""

    times: tuple[int, ...]
    over: tuple[int, ...] = ()


class Inner(NamedTuple):
    """An inner product of two sums of products, of which the node uses the value, whatever it makes of that."""

    left: tuple[Term, ...]
    right: tuple[Term, ...]


class Packed(NamedTuple):
    """An input that holds several operands one after the other along its last axis, of these sizes."""

    input: int
    sizes: tuple[int, ...]
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Action:
    """An output as a sum of products of operands.

    `terms` lists the products; "each" makes a term of every operand, "all" one product of all of them. A term falls
    away with an operand that a node leaves out. `moves`: entries are put somewhere, copied or left out, so that terms
    lie side by side instead of being added. `positive`: the operator is linear for positive factors only, as Relu is,
    and each entry on its own. `outputs` says how many outputs follow the terms, if not all; `blind`, that the operator
    reads sizes and never numbers; `turned`, which operand it divides by its root mean square, so that a rotation of
    that operand comes out again; `centred`, that it takes the mean off first, so that only a rotation does that keeps
    the mean. `inner` is an inner product on which the output depends as well; `others` gives the terms of other
    outputs. Operands are inputs, but where some are `packed` into one.
    """

    terms: tuple[Term, ...] | Literal["each", "all"] = ()
    moves: bool = False
    positive: bool = False
    outputs: int | None = None
    blind: bool = False
    turned: int | None = None
    centred: bool = False
    inner: Inner | None = None
    others: tuple[tuple[int, tuple[Term, ...]], ...] = ()
    packed: tuple[Packed, ...] = ()

    def terms_of(self, given: Sequence[int]) -> list[Term]:
        """List the terms of a node with the given inputs."""
        if self.terms == "each":
            return [Term((index,)) for index in given]
        if self.terms == "all":
            return [Term(tuple(given))]
        return self.having(self.terms, given)

    def having(self, terms: Sequence[Term], given: Sequence[int]) -> list[Term]:
        """List those of some terms that a node with the given inputs has."""
        operands = {*given, *(each for packed in self.packed if packed.input in given for each in packed.operands)}
        return [term for term in terms if operands.issuperset((*term.times, *term.over))]


NONLINEAR = Action()
SIZES_ONLY = Action(blind=True)
MOVED = Action((Term((0,)),), moves=True)
LINEAR = Action((Term((0,)),))  # of the first operand: it is passed on, summed or averaged
HOMOGENEOUS = Action((Term((0,)),), positive=True)
ADDED = Action("each")
LARGEST = Action("each", positive=True)
JOINED = Action("each", moves=True)
MULTIPLIED = Action((Term((0, 1)),))
DIVIDED = Action((Term((0,), over=(1,)),))
INVERTED = Action((Term((), over=(0,)),))
CONTRACTED = Action("all")
AFFINE = Action((Term((0, 1)), Term((2,))))
CHOSEN = Action((Term((1,)), Term((2,))))  # by the first operand
GAINED = Action((Term((1,)), Term((2,))), outputs=1)  # the first operand is normalised, then multiplied and shifted
SHIFTED = Action((Term((0, 1)), Term((3, 1)), Term((2,))))  # (x - mean) * gain * constant + bias
ROOT_MEAN_SQUARE = Action((Term((1,)),), outputs=1, turned=0)
CENTRED = Action((Term((1,)), Term((2,))), outputs=1, turned=0, centred=True)
SQUARED = Action((Term((0, 0)),))
