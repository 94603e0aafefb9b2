"""The axis algebra: every axis is an expression over dimensions, and operators are equations between axes.

    axis  ::=  dim  |  axis * axis * ...  |  axis + axis + ...

A dimension is a set of places that change together on every tensor that has it. It is a variable: equating it with a
product or a sum *refines* it, everywhere at once. Solving is unification, as in type inference; its cost follows the
number of equations and never the sizes.

    >>> from bevel.ir.axes import Dim, Solver, product, resolve
    >>> solver, hidden, heads, head = Solver(), Dim(768), Dim(12), Dim(64)
    >>> solver.unify(hidden, product(heads, head))
    >>> resolve(hidden)
    12*64

The normal form keeps a sum outermost where it can, `(a + b) * c = a*c + b*c`, and holds no factor of size one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from itertools import count
from math import prod
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np

# A sum with more parts than this is left alone: nobody cuts one axis into so many named pieces on purpose.
MAX_TERMS = 4096
# Entries of an outer factor that are told apart where nothing simpler aligns two products.
MOST_UNROLLED = 4


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


class Conflict(NamedTuple):
    """Two axes that an operator equates but that have no common refinement."""

    left: Axis
    right: Axis


class Solver:
    """Unifies axes and remembers what could not be aligned."""

    def __init__(self) -> None:
        self.conflicts: list[Conflict] = []

    def unify(self, left: Axis, right: Axis) -> None:
        """Make two axes the same, refining dimensions where needed; a failure becomes a conflict.

        >>> solver, fused, q, k, v = Solver(), Dim(2304), Dim(768), Dim(768), Dim(768)
        >>> solver.unify(fused, total(q, k, v))
        >>> solver.unify(k, product(Dim(12), Dim(64)))
        >>> resolve(fused)
        768 + 12*64 + 768
        """
        left, right = resolve(left), resolve(right)
        if left is right or (left.size == right.size and left.size <= 1):
            return
        if left.size != right.size:
            self.conflicts.append(Conflict(left, right))
        elif isinstance(right, Dim):
            right.refine(left)
        elif isinstance(left, Dim):
            left.refine(right)
        elif isinstance(left, Product) and isinstance(right, Product):
            self._align_products(list(left.factors), list(right.factors))
        else:
            self._align_sums(left, right)

    def _align_products(self, left: list[Axis], right: list[Axis]) -> None:
        """Match factors from the innermost outwards, as digits of a mixed radix."""
        while left and right:
            x, y = left[-1], right[-1]
            if x is y:
                left.pop()
                right.pop()
                continue
            if x.size == y.size:
                self.unify(left.pop(), right.pop())
            elif y.size % x.size == 0:
                right[-1] = self._quotient(y, left.pop())
            elif x.size % y.size == 0:
                left[-1] = self._quotient(x, right.pop())
            elif not self._unroll(left, right):
                self._skip_segment(left, right)
                continue
            self.unify(product(*left), product(*right))  # what is left may have been refined
            return

    def _quotient(self, axis: Axis, divisor: Axis) -> Axis:
        """Refine `axis` to `quotient * divisor` and return the quotient."""
        quotient = fresh(axis.size // divisor.size)
        self.unify(axis, product(quotient, divisor))
        return quotient

    def _unroll(self, left: list[Axis], right: list[Axis]) -> bool:
        """Equate `a*b` with `c*d` of which no factor divides another: few outer entries are taken one by one.

        So a channel shuffle over 4 groups of 34 becomes 34 + 34 + 34 + 34 against 34 * 4, which sums can align.
        """
        if len(left) < 2 or len(right) < 2 or left[-2].size * left[-1].size != right[-2].size * right[-1].size:
            return False
        outer = min(left[-2], right[-2], key=lambda factor: factor.size)
        if not isinstance(outer, Dim) or outer.size > MOST_UNROLLED:
            return False
        outer.refine(Sum((ONE,) * outer.size))
        self.unify(product(left.pop(-2), left.pop()), product(right.pop(-2), right.pop()))
        return True

    def _skip_segment(self, left: list[Axis], right: list[Axis]) -> None:
        """Drop the shortest trailing runs of equal size: no common refinement lies inside them."""
        skipped_left, skipped_right = [left.pop()], [right.pop()]
        while (a := prod(f.size for f in skipped_left)) != (b := prod(f.size for f in skipped_right)):
            side, run = (left, skipped_left) if a < b else (right, skipped_right)
            if not side:
                break
            run.append(side.pop())
        self.conflicts.append(Conflict(product(*reversed(skipped_left)), product(*reversed(skipped_right))))

    def _align_sums(self, left: Axis, right: Axis) -> None:
        """Match terms at the cut points of both."""
        lefts, rights = deque(_terms(left)), deque(_terms(right))
        if len(lefts) + len(rights) > MAX_TERMS:
            self.conflicts.append(Conflict(left, right))
            return
        while lefts and rights:
            a, b = _next_term(lefts), _next_term(rights)
            if a.size == b.size:
                self.unify(a, b)
            elif a.size < b.size:
                head, tail = self.cut(b, a.size)
                rights.appendleft(tail)
                self.unify(a, head)
            else:
                head, tail = self.cut(a, b.size)
                lefts.appendleft(tail)
                self.unify(head, b)

    def cut(self, axis: Axis, place: int) -> tuple[Axis, Axis]:
        """Refine an axis so that it can be taken apart at `place`, strictly inside it.

        >>> solver, groups, channels = Solver(), Dim(4), Dim(6)
        >>> solver.cut(product(groups, channels), 12)
        (2*6, 2*6)
        """
        axis = resolve(axis)
        if isinstance(axis, Dim):
            head, tail = fresh(place), fresh(axis.size - place)
            axis.refine(total(head, tail))
            return head, tail
        if isinstance(axis, Sum):
            return self._cut_sum(axis, place)
        return self._cut_product(axis, place)

    def _cut_sum(self, axis: Sum, place: int) -> tuple[Axis, Axis]:
        heads: list[Axis] = []
        tails = deque(axis.terms)
        while place and (term := _next_term(tails)).size <= place:
            heads.append(term)
            place -= term.size
        if place:
            head, tail = self.cut(term, place)
            heads.append(head)
            tails.appendleft(tail)
        return total(*heads), total(*tails)

    def _cut_product(self, axis: Product, place: int) -> tuple[Axis, Axis]:
        """Cut the leading factor; where the cut falls inside one of its entries, isolate that entry and cut inside."""
        lead, inner = axis.factors[0], product(*axis.factors[1:])
        assert isinstance(lead, Dim)  # the normal form distributes a leading sum
        whole, part = divmod(place, inner.size)
        if not part:
            head, tail = self.cut(lead, whole)
            return product(head, inner), product(tail, inner)
        before, after = fresh(whole), fresh(lead.size - whole - 1)
        lead.refine(total(before, ONE, after))
        inner_head, inner_tail = self.cut(inner, part)
        return total(product(before, inner), inner_head), total(inner_tail, product(after, inner))


def _terms(axis: Axis) -> tuple[Axis, ...]:
    return axis.terms if isinstance(axis, Sum) else (axis,)


def _next_term(queue: deque[Axis]) -> Axis:
    """Take the next term, which may have become a sum since it was queued."""
    term = resolve(queue.popleft())
    if isinstance(term, Sum):
        queue.extendleft(reversed(term.terms))
        return queue.popleft()
    return term


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
