"""Homogeneous linear equations between exponents, and a basis of their solutions in small integers.

The equations that graphs give have one, two or three unknowns and come in an order in which most of them determine
their newest unknown, so elimination takes about as long as reading them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction
from math import gcd, lcm
from typing import Generic, TypeAlias, TypeVar

Unknown = TypeVar("Unknown", bound=Hashable)
Number: TypeAlias = int | Fraction  # integers, which are fast, where they are enough
Combination: TypeAlias = dict[Unknown, Number]


def solutions(equations: Iterable[Iterable[tuple[Unknown, int]]]) -> list[dict[Unknown, int]]:
    """Return a basis of the solutions: for each unknown left free, the exponents that are not zero.

    An equation lists unknowns with their factors; the sum of the products is zero.

    >>> solutions([[("y", 1), ("a", -1), ("b", -1)], [("y", 1), ("c", 1)], [("a", 1)]])
    [{'y': 1, 'b': 1, 'c': -1}]
    """
    system: _System[Unknown] = _System()
    for equation in equations:
        system.add(equation)
    return system.basis()


class _System(Generic[Unknown]):
    """Equations solved so far: some unknowns are combinations of the others."""

    def __init__(self) -> None:
        self.met: dict[Unknown, int] = {}
        self.solved: dict[Unknown, Combination[Unknown]] = {}

    def add(self, equation: Iterable[tuple[Unknown, int]]) -> None:
        """Solve an equation for its newest unknown that is still free."""
        left: Combination[Unknown] = {}
        for unknown, factor in equation:
            self.met.setdefault(unknown, len(self.met))
            _add(left, self.reduced(unknown), factor)
        if left:
            newest = max(left, key=self.met.__getitem__)
            pivot = left.pop(newest)
            ratio: Number = -pivot if pivot in (1, -1) else Fraction(-1, 1) / pivot
            self.solved[newest] = {unknown: factor * ratio for unknown, factor in left.items()}

    def reduced(self, unknown: Unknown) -> Combination[Unknown]:
        """Return an unknown as a combination of free ones; the way there is shortened, without recursion."""
        waiting, done = [unknown], set[Unknown]()
        while waiting:
            top = waiting[-1]
            combination = self.solved.get(top)
            deeper = [] if combination is None else [each for each in combination if each in self.solved]
            if open_ones := [each for each in deeper if each not in done]:
                waiting.extend(open_ones)
                continue
            if combination is not None and deeper:
                self.solved[top] = self._substituted(combination)
            done.add(waiting.pop())
        return self.solved.get(unknown, {unknown: 1})

    def _substituted(self, combination: Combination[Unknown]) -> Combination[Unknown]:
        result: Combination[Unknown] = {}
        for unknown, factor in combination.items():
            _add(result, self.solved.get(unknown, {unknown: 1}), factor)
        return result

    def basis(self) -> list[dict[Unknown, int]]:
        """Return, for each free unknown, the solution in which it alone of the free ones is not zero."""
        found: dict[Unknown, Combination[Unknown]] = {each: {} for each in self.met if each not in self.solved}
        for unknown in self.met:
            for free, factor in self.reduced(unknown).items():
                found[free][unknown] = factor
        return [_integers(solution) for solution in found.values()]


def _add(total: Combination[Unknown], combination: Mapping[Unknown, Number], factor: Number) -> None:
    for unknown, part in combination.items():
        total[unknown] = total.get(unknown, 0) + factor * part
        if not total[unknown]:
            del total[unknown]


def _integers(solution: Combination[Unknown]) -> dict[Unknown, int]:
    """Multiply a solution by the least number that makes all of it integers without a common divisor."""
    multiple = lcm(*(factor.denominator for factor in solution.values()))
    whole = {unknown: int(factor * multiple) for unknown, factor in solution.items()}
    divisor = gcd(*whole.values())
    return {unknown: factor // divisor for unknown, factor in whole.items()}
