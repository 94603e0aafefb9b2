"""Ranges of weights on both sides of what a scale passes, made the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.content import content
from bevel.ir.groups import Analysis, Group
from bevel.ir.mixing import mixed, powered
from bevel.ir.strands import Occurrence
from bevel.ir.symmetry import Motion
from bevel.passes.fitting.layers import layers
from bevel.passes.scaling.factors import equalizing
from bevel.passes.scaling.motions import along, largest_of, motions, owners

Array = np.ndarray[Any, Any]

# Ranges that differ by less are the same: an eighth of a step of eight bits.
SETTLED: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Chain:
    """A motion with weights of layers that it multiplies, and weights that it divides."""

    group: Group
    motion: Motion
    before: tuple[Occurrence, ...]
    after: tuple[Occurrence, ...]


def balanced(analysis: Analysis, only: Sequence[str], skip: Sequence[str]) -> list[Chain]:
    """Return the motions that have weights of layers on both sides."""
    weights = {layer.weight for layer in layers(analysis.model)}
    found = []
    for group, motion in motions(analysis, only, skip):
        powers = {each: power for each, power in motion.initializers.items() if each.value in weights}
        before = tuple(each for each, power in powers.items() if power == 1)
        after = tuple(each for each, power in powers.items() if power == -1)
        if before and after and len(before) + len(after) == len(powers):
            found.append(Chain(group, motion, before, after))
    return found


class Balance:
    """The magnitudes of all weights that chains multiply, and the factors found so far."""

    def __init__(self, analysis: Analysis, chains: Sequence[Chain]) -> None:
        self._analysis = analysis
        self._chains = chains
        self._sides = [each for chain in chains for each in (*chain.before, *chain.after)]
        self._sizes = {each: chain.group.size for chain in chains for each in (*chain.before, *chain.after)}
        self._owners = {each: owners(analysis, [each], self._sizes[each]) for each in dict.fromkeys(self._sides)}
        self._arrays = {each.value: _magnitudes(each.value) for each in self._sides}
        self.factors = {chain: np.ones(chain.group.size) for chain in chains}

    def settle(self, most: int) -> int:
        """Balance chain after chain until all are, or often enough; return how often."""
        for done in range(1, most + 1):
            moved = [self._balance(chain) for chain in self._chains]
            if max(moved, default=0.0) < SETTLED:
                return done
        return most

    def _balance(self, chain: Chain) -> float:
        """Give both sides of a chain the same ranges; return by how much they changed, as a logarithm."""
        before, after = (np.max([self._range(each) for each in side], axis=0) for side in (chain.before, chain.after))
        factor = equalizing(before, after)
        for each, power in chain.motion.initializers.items():
            if each.value in self._arrays:
                self._multiply(each, powered(factor, power))
        self.factors[chain] = self.factors[chain] * factor
        return float(np.abs(np.log(factor)).max())

    def _range(self, each: Occurrence) -> Array:
        """Return the largest magnitude that a weight has for each entry."""
        array = self._arrays[each.value]
        others = tuple(place for place in range(array.ndim) if place != each.axis)
        return largest_of(array.max(others), self._owners[each], self._sizes[each])

    def _multiply(self, each: Occurrence, factor: Array) -> None:
        axis, first = along(self._analysis, each), np.moveaxis(self._arrays[each.value], each.axis, 0)
        self._arrays[each.value] = np.moveaxis(mixed(first, axis, each.path, factor), 0, each.axis)

    def precision(self) -> dict[Occurrence, float]:
        """Return how much of a weight's range its channels use in the mean, along each dimension that is scaled."""
        found = {}
        for each in self._owners:
            ranges = self._range(each)
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
