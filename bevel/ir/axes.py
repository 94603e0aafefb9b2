"""The axis algebra: every axis is an expression over dimensions, and operators are equations between axes.

    axis  ::=  dim  |  axis * axis * ...  |  axis + axis + ...

A dimension is a set of places that change together on every tensor that has it. It is a variable: equating it with a
product or a sum *refines* it, everywhere at once. Solving is unification, as in type inference; its cost follows the
number of equations and never the sizes (`bevel.ir.unification`).

    >>> from bevel.ir.axes import Dim, product, resolve
    >>> hidden, heads, head = Dim(768), Dim(12), Dim(64)
    >>> hidden.refine(product(heads, head))
    >>> resolve(hidden)
    12*64

The normal form keeps a sum outermost where it can, `(a + b) * c = a*c + b*c`, and holds no factor of size one.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import count
from math import prod
from typing import ClassVar, TypeAlias

import numpy as np


class Dim:
    """A dimension with `size` places; `bound` holds what it was refined to."""

    __slots__ = ("bound", "size")

    steps: ClassVar[Iterator[int]] = count(1)
    refined: ClassVar[int] = 0
    """A number that no other refinement of any dimension has: what was in normal form is so until it is another one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.bound: Axis | None = None

    def refine(self, axis: Axis) -> None:
        """Let the dimension stand for an axis from now on."""
        self.bound = axis
        Dim.refined = next(Dim.steps)

    def __repr__(self) -> str:
        return str(self.size) if self.bound is None else repr(resolve(self))


class Product:
    """Factors from the outermost (slowest) to the innermost."""

    __slots__ = ("factors", "settled", "size")

    def __init__(self, factors: tuple[Axis, ...]) -> None:
        self.factors = factors
        self.settled = -1  # what `Dim.refined` was when it was last found to be in normal form
        self.size: int = prod([factor.size for factor in factors])

    def __repr__(self) -> str:
        return "*".join(f"({f!r})" if isinstance(f, Sum) else repr(f) for f in self.factors) or "1"


class Sum:
    """Terms laid out one after the other."""

    __slots__ = ("settled", "size", "terms")

    def __init__(self, terms: tuple[Axis, ...]) -> None:
        self.terms = terms
        self.settled = -1  # what `Dim.refined` was when it was last found to be in normal form
        self.size: int = sum([term.size for term in terms])

    def __repr__(self) -> str:
        return " + ".join(repr(term) for term in self.terms)


Axis: TypeAlias = Dim | Product | Sum
ONE = Product(())


def fresh(size: int) -> Axis:
    """Make a new dimension; one place needs none."""
    return ONE if size == 1 else Dim(size)


def resolve(axis: Axis) -> Axis:
    """Replace refined dimensions by what they were refined to, in normal form."""
    if isinstance(axis, Dim):
        bound = axis.bound
        if bound is None:
            return axis
        return bound if type(bound) is Dim and bound.bound is None else _follow(axis)  # mostly there is one step
    if _settled(axis):
        return axis
    return product(*axis.factors) if isinstance(axis, Product) else total(*axis.terms)


def _follow(dim: Dim) -> Axis:
    """Return what a refined dimension stands for, which it is bound to from then on; without recursion.

    Channels that are split again and again stand for sums within sums, hundreds deep.
    """
    stack = [dim]
    while stack:
        bound = stack[-1].bound
        assert bound is not None
        if _in_normal_form(bound):
            stack.pop()
        elif waiting := list(_open_within(bound)):
            stack.extend(waiting)
        else:
            stack.pop().bound = resolve(bound)
    assert dim.bound is not None
    return dim.bound


def _open_within(axis: Axis) -> Iterator[Dim]:
    """Yield the dimensions of an axis that are refined to something that is not in normal form."""
    parts: list[Axis] = [axis]
    while parts:
        part = parts.pop()
        if not isinstance(part, Dim):
            if not _settled(part):
                parts.extend(part.factors if isinstance(part, Product) else part.terms)
        elif part.bound is not None and not _in_normal_form(part.bound):
            yield part


def _in_normal_form(axis: Axis) -> bool:
    return axis.bound is None if isinstance(axis, Dim) else _settled(axis)


def _settled(axis: Product | Sum) -> bool:
    """Say whether an axis is in normal form already, so that it need not be built anew: sums may be long.

    Types are compared by identity, for this is where most of an analysis is spent.
    """
    if axis.settled == Dim.refined:
        return True
    if not _parts_settled(axis):
        return False
    axis.settled = Dim.refined
    return True


def _parts_settled(axis: Product | Sum) -> bool:
    if isinstance(axis, Product):
        for place, factor in enumerate(axis.factors):
            if type(factor) is Dim:
                if factor.bound is not None:
                    return False
            elif place == 0 or type(factor) is not Sum or not _settled(factor):
                return False
        return True
    for term in axis.terms:
        if type(term) is Dim:
            if term.bound is not None:
                return False
        elif type(term) is not Product or not _settled(term):
            return False
    return True


def product(*factors: Axis) -> Axis:
    """Multiply axes, the outermost first.

    >>> a, b, c = Dim(2), Dim(3), Dim(4)
    >>> product(total(a, b), c)
    2*4 + 3*4
    >>> product(total(ONE, a), total(b, c))
    3 + 4 + 2*(3 + 4)
    """
    flat: list[Axis] = []
    for factor in factors:
        factor = resolve(factor)
        if isinstance(factor, Product):
            flat.extend(factor.factors)
        elif factor.size != 1:
            flat.append(factor)
    if len(flat) == 1:
        return flat[0]
    if flat and isinstance(flat[0], Sum):  # (a + b) * c = a*c + b*c
        return total(*[product(term, *flat[1:]) for term in flat[0].terms])
    return Product(tuple(flat)) if flat else ONE


def total(*terms: Axis) -> Axis:
    """Lay axes end to end."""
    flat: list[Axis] = []
    for term in terms:
        term = resolve(term)
        if isinstance(term, Sum):
            flat.extend(term.terms)
        elif term.size:
            flat.append(term)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def atoms(axis: Axis) -> Iterator[Dim]:
    """Yield the dimensions of an axis that are not refined further, in layout order, with repeats."""
    parts = [resolve(axis)]
    while parts:  # there is nothing to resolve within a normal form
        part = parts.pop()
        if isinstance(part, Dim):
            yield part
        else:
            parts.extend(reversed(part.factors if isinstance(part, Product) else part.terms))


def holds(axis: Axis, dims: Container[Dim]) -> bool:
    """Say whether an axis has any of some dimensions.

    >>> heads, width = Dim(2), Dim(3)
    >>> holds(product(heads, width), {width}), holds(heads, {width})
    (True, False)
    """
    parts = [resolve(axis)]
    while parts:  # there is nothing to resolve within a normal form
        part = parts.pop()
        if not isinstance(part, Dim):
            parts.extend(part.factors if isinstance(part, Product) else part.terms)
        elif part in dims:
            return True
    return False


def paths(axis: Axis, prefix: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Dim]]:
    """Yield each atom with the positions that lead to it through products and sums."""
    parts = [(prefix, resolve(axis))]
    while parts:  # there is nothing to resolve within a normal form
        at, part = parts.pop()
        if isinstance(part, Dim):
            yield at, part
        else:
            inner = part.factors if isinstance(part, Product) else part.terms
            parts.extend([((*at, place), each) for place, each in enumerate(inner)][::-1])


def places(axis: Axis, dim: Dim) -> list[np.ndarray]:
    """Return, for each time a dimension occurs in a product, which of its entries every place of an axis holds, or -1.

    >>> heads, half = Dim(2), Dim(2)
    >>> [place.tolist() for place in places(product(heads, total(half, half)), half)]
    [[0, 1, 0, 1, 0, 1, 0, 1]]
    """
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return [np.arange(axis.size)] if axis is dim else []
    found: list[np.ndarray] = []
    if isinstance(axis, Product):
        outer = 1
        for factor in axis.factors:
            inner = axis.size // outer // factor.size
            found.extend(np.tile(np.repeat(place, inner), outer) for place in places(factor, dim))
            outer *= factor.size
        return found
    parts = [places(term, dim) for term in axis.terms]
    absent = [np.full(term.size, -1) for term in axis.terms]
    for occurrence in range(max(map(len, parts))):
        chosen = [part[occurrence] if occurrence < len(part) else gap for part, gap in zip(parts, absent, strict=True)]
        found.append(np.concatenate(chosen))
    return found
