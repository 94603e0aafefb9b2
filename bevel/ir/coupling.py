"""The notation of operator rules, and the table that holds them.

A rule states an operator as an equation between the axes of its inputs and outputs, one word an axis, the same word the
same axis:

    "... i k, ... k j -> ... i j"               MatMul
    "n (g i) *, (g o) i *, (g o) -> n (g o) *"  Conv: plain, grouped and depthwise

| notation  | means                                                                                  |
|-----------|----------------------------------------------------------------------------------------|
| `word`    | an axis; the same word is the same axis wherever it stands                             |
| `(a b)`   | a product, the outermost factor first                                                  |
| `(a + b)` | a sum: the parts lie one after the other                                               |
| `...`     | any number of leading axes, aligned at the right as in broadcasting                    |
| `_`, `*`  | one axis, or any number of axes, whose order carries meaning (positions, taps): fixed  |
| `1`       | an axis of size one                                                                    |
| `?`       | a whole tensor of which nothing is known: all its axes are fixed                       |
| `.`       | a whole tensor whose axes have nothing to do with the others': left as it is           |

What an operator does to the numbers stands beside its rule, as `acts` (`bevel.ir.action`): a rule that says nothing is
taken for nonlinear, through which no scale, rotation or linear map can move.

Optional inputs and outputs are written out; those that a node leaves away are skipped. What a rule does not say is
never assumed: a word that disappears from input to output can only be dropped (`select`) where the rule declares that
the operator sums over it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from bevel import registry
from bevel.errors import RuleError
from bevel.ir.action import NONLINEAR, Action

if TYPE_CHECKING:
    from bevel.ir.site import Site


class Freedom(IntFlag):
    """What may be done to a dimension without changing the function.

    Rules state the first two for an axis. The others are found from how operators act (`bevel.ir.symmetry`).
    """

    PERMUTE = 1  # any order computes the same
    SELECT = 2  # entries can be dropped; the result is that of the network with their consumers' slices zeroed
    SCALE = 4  # a positive diagonal can move from some tensors to others
    ROTATE = 8  # an orthogonal matrix can
    LINEAR = 16  # any invertible matrix can


FIXED = Freedom(0)
FREE = Freedom.PERMUTE | Freedom.SELECT


@dataclass(frozen=True)
class Coupling:
    """One operator as an equation between axes.

    `sizes` gives sizes that only attributes tell. `sums` names the words that the operator sums over; `statistics`
    those over which it computes something that dropping entries would change; `fixed` those whose order carries
    meaning. `states` maps an integer attribute of the node to the axis whose size it repeats.
    """

    equation: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    sums: Collection[str] = ()
    statistics: Collection[str] = ()
    fixed: Collection[str] = ()
    states: Mapping[str, str] = field(default_factory=dict)


Rule: TypeAlias = Callable[["Site"], Coupling | None]
Acts: TypeAlias = Action | Callable[["Site"], Action]

_RULES: dict[tuple[str, str], Rule] = {}
_ACTIONS: dict[tuple[str, str], Acts] = {}


def rule(*op_types: str, domain: str = "", acts: Acts = NONLINEAR) -> Callable[[Rule], Rule]:
    """Register a rule for operators of a domain; a rule returns a `Coupling` or states its axes on the site.

    `acts` says how the operators act on numbers, or, where that depends on the node, computes it from the site. What
    does not say so is taken for nonlinear.
    """

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            _RULES[domain, op_type] = function
            _ACTIONS[domain, op_type] = acts
        return function

    return register


@cache
def load_rules() -> None:
    """Import every installed set of rules, our own and those of plugins, which registers them."""
    installed = registry.rules()
    for name in installed:
        installed[name]


def find_rule(domain: str, op_type: str) -> Rule | None:
    """Look up the rule for an operator."""
    return _RULES.get((domain, op_type))


def find_action(domain: str, op_type: str) -> Acts:
    """Look up how an operator acts on numbers."""
    return _ACTIONS.get((domain, op_type), NONLINEAR)


def known_rules() -> Mapping[tuple[str, str], Rule]:
    """Return every installed rule by domain and operator type."""
    load_rules()
    return dict(_RULES)


@dataclass(frozen=True)
class Word:
    """An axis by name."""

    name: str


@dataclass(frozen=True)
class Compound:
    """A product or a sum of axes."""

    parts: tuple[Term, ...]
    kind: Literal["product", "sum"]


Term: TypeAlias = Word | Compound
Whole: TypeAlias = Literal["?", "."]
TensorPattern: TypeAlias = Whole | tuple[Term, ...]

ELLIPSIS, STAR, OWN, UNIT = Word("..."), Word("*"), Word("_"), Word("1")  # compared by identity
_SYMBOLS = {word.name: word for word in (ELLIPSIS, STAR, OWN, UNIT)}
_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z][A-Za-z0-9]*|[()+*_1?.])")


@lru_cache(maxsize=4096)
def parse_equation(equation: str) -> tuple[tuple[TensorPattern, ...], tuple[TensorPattern, ...]]:
    """Parse an equation into the patterns of its inputs and of its outputs.

    >>> inputs, outputs = parse_equation("n (g i), (g o) i -> n (g o)")
    >>> outputs[0]
    (Word(name='n'), Compound(parts=(Word(name='g'), Word(name='o')), kind='product'))
    """
    sides = equation.split("->")
    if len(sides) != 2:
        raise RuleError(f"the equation {equation!r} needs one '->'")
    inputs, outputs = (tuple(_parse_tensor(text) for text in side.split(",")) for side in sides)
    return inputs, outputs


def parse_axis(text: str) -> Term:
    """Parse the expression of one axis.

    >>> parse_axis("h d")
    Compound(parts=(Word(name='h'), Word(name='d')), kind='product')
    """
    tokens = _tokens(text)
    term = _parse_terms(tokens)
    if tokens:
        raise RuleError(f"{text!r} is no axis: unexpected {tokens[0]!r}")
    return term


def _tokens(text: str) -> list[str]:
    tokens, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise RuleError(f"the equation part {text!r} has an unknown symbol at {text[place:]!r}")
        tokens.append(match[1])
        place = match.end()
    return tokens


def _parse_tensor(text: str) -> TensorPattern:
    tokens = _tokens(text)
    if tokens == ["?"]:
        return "?"
    if tokens == ["."]:
        return "."
    axes: list[Term] = []
    while tokens:
        axes.append(_parse_factor(tokens))
    return tuple(axes)


def _parse_factor(tokens: list[str]) -> Term:
    token = tokens.pop(0)
    if token != "(":
        return _SYMBOLS.get(token) or Word(token)
    term = _parse_terms(tokens)
    if not tokens or tokens.pop(0) != ")":
        raise RuleError("a '(' is never closed in the equation")
    return term


def _parse_terms(tokens: list[str]) -> Term:
    """Parse `a b + c`: a sum of products."""
    terms: list[Term] = []
    while True:
        factors: list[Term] = []
        while tokens and tokens[0] not in (")", "+"):
            factors.append(_parse_factor(tokens))
        terms.append(factors[0] if len(factors) == 1 else Compound(tuple(factors), "product"))
        if not tokens or tokens[0] != "+":
            return terms[0] if len(terms) == 1 else Compound(tuple(terms), "sum")
        tokens.pop(0)
