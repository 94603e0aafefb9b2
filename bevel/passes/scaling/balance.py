"""Ranges of weights on both sides of what a scale passes, made the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.content import content
from bevel.ir.groups import Analysis
from bevel.ir.strands import Occurrence
from bevel.passes.fitting.layers import layers
from bevel.passes.scaling.factors import equalizing
from bevel.passes.scaling.motions import Direction, directions, largest_of, spread

Array = np.ndarray[Any, Any]

# Ranges that differ by less are the same: one step of eight bits.
SETTLED: Final = 1e-2
# Chains around a loop can drive each other on for ever: they do where an entry is scaled by more in a second round.
FARTHEST: Final = 1e4


@dataclass(frozen=True, eq=False)
class Chain:
    """A direction with weights of layers that it multiplies, and weights that it divides."""

    direction: Direction
    before: tuple[Occurrence, ...]
    after: tuple[Occurrence, ...]


def balanced(analysis: Analysis, only: Sequence[str], skip: Sequence[str]) -> list[Chain]:
    """Return the motions that have weights of layers on both sides."""
    weights = {layer.weight for layer in layers(analysis.model)}
    found = []
    for direction in directions(analysis, only, skip):
        powers = {each: power for each, power in direction.motion.initializers.items() if each.value in weights}
        before = tuple(each for each, power in powers.items() if power == 1)
        after = tuple(each for each, power in powers.items() if power == -1)
        if before and after and len(before) + len(after) == len(powers):
            found.append(Chain(direction, before, after))
    return found


@dataclass(frozen=True)
class _State:
    """Magnitudes and factors after so many rounds, and the share of its weight's range that a channel uses."""

    rounds: int
    arrays: dict[ir.Value, Array]
    factors: dict[Chain, Array]
    used: float


class Balance:
    """The magnitudes of all weights that chains multiply, and the factors found so far."""

    def __init__(self, analysis: Analysis, chains: Sequence[Chain]) -> None:
        self._analysis = analysis
        self._chains = chains
        self._owners = {
            (chain, each): chain.direction.owners(analysis, [each])
            for chain in chains
            for each in (*chain.before, *chain.after)
        }
        self._arrays = {each.value: _magnitudes(each.value) for _, each in self._owners}
        self.factors = {chain: np.ones(chain.direction.size) for chain in chains}

    def settle(self, most: int) -> int:
        """Balance chain after chain until all are, or often enough; return how often.

        Chains that drive each other on are left as they were when the most of the ranges was used.
        """
        best = _State(0, dict(self._arrays), dict(self.factors), self._used())
        for done in range(1, most + 1):
            moved = [self._balance(chain) for chain in self._chains]
            if max(moved, default=0.0) < SETTLED:
                return done
            if done > 1 and max(np.abs(np.log(factor)).max() for factor in self.factors.values()) > np.log(FARTHEST):
                self._arrays, self.factors = best.arrays, best.factors
                return best.rounds
            used = self._used()
            if used > best.used:
                best = _State(done, dict(self._arrays), dict(self.factors), used)
        return most

    def _used(self) -> float:
        return float(np.mean(list(self.precision().values()))) if self._chains else 1.0

    def _balance(self, chain: Chain) -> float:
        """Give both sides of a chain the same ranges; return by how much they changed, as a logarithm."""
        before, after = (
            np.max([self._range(chain, each) for each in side], axis=0) for side in (chain.before, chain.after)
        )
        factor = equalizing(before, after)
        for each in (*chain.before, *chain.after):
            array = self._arrays[each.value]
            vector = spread(factor ** float(chain.direction.motion.exponents[each]), self._owners[chain, each])
            self._arrays[each.value] = array * vector.reshape(-1, *[1] * (array.ndim - each.axis - 1))
        self.factors[chain] = self.factors[chain] * factor
        return float(np.abs(np.log(factor)).max())

    def _range(self, chain: Chain, each: Occurrence) -> Array:
        """Return the largest magnitude that a weight has for each entry."""
        array = self._arrays[each.value]
        others = tuple(place for place in range(array.ndim) if place != each.axis)
        return largest_of(array.max(others), self._owners[chain, each], chain.direction.size)

    def precision(self) -> dict[Occurrence, float]:
        """Return how much of a weight's range its channels use in the mean, along each dimension that is scaled."""
        found = {}
        for chain, each in self._owners:
            ranges = self._range(chain, each)
            found[each] = float(ranges.mean() / ranges.max()) if ranges.max() > 0 else 1.0
        return found

    def notes(self, before: dict[Occurrence, float], rounds: int) -> Iterator[str]:
        """Say what was balanced, and what it gained."""
        if not self._chains:
            yield "no two layers have only what a scale passes between them"
            return
        now = self.precision()
        worst = min(before, key=lambda each: before[each])
        mean = [float(np.mean(list(each.values()))) for each in (before, now)]
        yield f"{len(self._chains)} chains of {len(self._arrays)} weights equalized, in {rounds} rounds"
        yield (
            f"range of a channel over that of its weight: {mean[0]:.2f} before, {mean[1]:.2f} now (mean); "
            f"{before[worst]:.2f} before, {now[worst]:.2f} now ({worst})"
        )


def _magnitudes(value: ir.Value) -> Array:
    assert value.const_value is not None
    with content(value.const_value) as array:
        return np.asarray(np.abs(array.astype(np.float64)))
