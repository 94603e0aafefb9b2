"""Equations between axes, solved by unification: dimensions are refined, everywhere at once, until both sides agree.

>>> from bevel.ir.axes import Dim, product, resolve
>>> from bevel.ir.unification import Solver
>>> solver, hidden, heads, head = Solver(), Dim(768), Dim(12), Dim(64)
>>> solver.unify(hidden, product(heads, head))
>>> resolve(hidden)
12*64
"""

from __future__ import annotations

from collections import deque
from math import prod
from typing import NamedTuple

from bevel.ir.axes import ONE, Axis, Dim, Product, Sum, fresh, product, resolve, total

# A sum with more parts than this is left alone: nobody cuts one axis into so many named pieces on purpose.
MAX_TERMS = 4096
# Entries of an outer factor that are told apart where nothing simpler aligns two products.
MOST_UNROLLED = 4


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
