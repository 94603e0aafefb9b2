"""How an axis changed its size, in terms of the factors and terms that it is made of.

>>> change = Change.read("3*12*64", "3*6*64")
>>> change.before, change.after
(2304, 1152)
>>> sorted({pair[:2] for pair in change.sizes() if pair.before == 12})
[(12, 6)]
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal, NamedTuple, TypeAlias

from bevel.ir.axes import Axis, Dim, Product, resolve

Kind: TypeAlias = Literal["", "*", "+"]
Role: TypeAlias = Literal["whole", "count", "middle", "each"]

# Runs of neighbours are listed up to this many parts: an axis with more is no product that somebody wrote down.
MOST_PARTS: Final = 12


class Pair(NamedTuple):
    """A size before and after, and what it is of its axis.

    "whole" is an axis or a term of a sum; of a product, "count" is its outer factors, "each" its inner ones.
    """

    before: int
    after: int
    role: Role


@dataclass(frozen=True)
class Change:
    """An axis as an expression over sizes, each before and after an edit."""

    before: int
    after: int
    kind: Kind = ""
    parts: tuple[Change, ...] = ()

    @staticmethod
    def of(axis: Axis, size: Callable[[Axis], int]) -> Change:
        """Return how an axis changes where `size` gives the new sizes."""
        axis = resolve(axis)
        if isinstance(axis, Dim):
            return Change(axis.size, size(axis))
        inner = axis.factors if isinstance(axis, Product) else axis.terms
        kind: Kind = "*" if isinstance(axis, Product) else "+"
        return Change(axis.size, size(axis), kind, tuple(Change.of(part, size) for part in inner))

    @staticmethod
    def read(before: str, after: str) -> Change:
        """Read the text that `str` gives of both sides; raises `ValueError` if they are not of one structure."""
        return _zip(_parse(before), _parse(after))

    def then(self, later: Change) -> Change | None:
        """Return both changes as one, or None where the later edit saw another structure."""
        if self.kind != later.kind or self.after != later.before or len(self.parts) != len(later.parts):
            return None
        parts = [part.then(other) for part, other in zip(self.parts, later.parts, strict=True)]
        if any(part is None for part in parts):
            return None
        return Change(self.before, later.after, self.kind, tuple(part for part in parts if part is not None))

    def text(self, side: Literal["before", "after"]) -> str:
        """Write one side of it: `12*64`, `768 + 2*(32 + 32)`."""
        if not self.parts:
            return "1" if self.kind else str(getattr(self, side))
        texts = [
            f"({part.text(side)})" if self.kind == "*" and part.kind == "+" else part.text(side) for part in self.parts
        ]
        return (" + " if self.kind == "+" else "*").join(texts)

    def sizes(self) -> Iterator[Pair]:
        """Yield the axis, its terms, its factors, and what neighbouring ones make together."""
        yield Pair(self.before, self.after, "whole")
        yield from self._runs()
        for part in self.parts:
            inner = part.sizes()
            if self.kind == "*":
                next(inner)  # a run of one already
            yield from inner

    def _runs(self) -> Iterator[Pair]:
        count = len(self.parts)
        if count > MOST_PARTS:
            return
        for start in range(count):
            for stop in range(start + 1, count + 1):
                if self.kind == "*" and stop - start < count:
                    run = self.parts[start:stop]
                    role: Role = "count" if start == 0 else "each" if stop == count else "middle"
                    yield Pair(prod(part.before for part in run), prod(part.after for part in run), role)
                elif self.kind == "+" and 1 < stop - start < count:
                    run = self.parts[start:stop]
                    yield Pair(sum(part.before for part in run), sum(part.after for part in run), "whole")


_Tree: TypeAlias = "int | tuple[Kind, Sequence[_Tree]]"
_KINDS: Final[Mapping[type[ast.operator], Kind]] = {ast.Mult: "*", ast.Add: "+"}


def _parse(text: str) -> _Tree:
    try:
        return _tree(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no sum or product of sizes") from error


def _tree(node: ast.expr) -> _Tree:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _KINDS:
        kind = _KINDS[type(node.op)]
        left, right = _tree(node.left), _tree(node.right)
        return kind, (*(left[1] if isinstance(left, tuple) and left[0] == kind else (left,)), right)
    raise ValueError(f"{ast.unparse(node)!r} is no sum or product of sizes")


def _zip(before: _Tree, after: _Tree) -> Change:
    if isinstance(before, int) and isinstance(after, int):
        return Change(before, after)
    if isinstance(before, int) or isinstance(after, int) or before[0] != after[0] or len(before[1]) != len(after[1]):
        raise ValueError("the structures before and after differ")
    parts = tuple(_zip(left, right) for left, right in zip(before[1], after[1], strict=True))
    combine = prod if before[0] == "*" else sum
    return Change(combine(part.before for part in parts), combine(part.after for part in parts), before[0], parts)
