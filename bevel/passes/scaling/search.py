"""The exponent of the salient scales: the one under which quantized weights give the outputs best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from bevel.passes.scaling.factors import powers_of_two, salient
from bevel.passes.scaling.motions import spread

Array = np.ndarray[Any, Any]

# Outputs of a layer that are looked at for each exponent: errors of a quantized weight are alike in all of them.
ROWS: Final = 96


@dataclass(frozen=True, eq=False)
class Part:
    """A layer as the search sees it, in single precision: its products are what takes time.

    `weights` `[groups, out, in]`, the second moment of its input `[groups, in, in]`, and for each input `[groups, in]`
    the factor that scales it, -1 for none, and how it is scaled already.
    """

    weights: Array
    second: Array
    owners: Array
    base: Array

    def error(self, scale: Array, quantized: Callable[[Array], Array]) -> float:
        """Return the squared error of the output with weights that were scaled, quantized and scaled back."""
        factor = (self.base * spread(scale, self.owners)).astype(np.float32)[:, None]
        return self._square(quantized(self.weights * factor) / factor - self.weights)

    def sample(self) -> "Part":
        """Return the layer with some of its outputs alone, evenly chosen, where it has many."""
        count = self.weights.shape[1]
        rows = np.unique(np.linspace(0, count - 1, min(count, ROWS)).round().astype(int))
        return replace(self, weights=self.weights[:, rows])

    @property
    def energy(self) -> float:
        """The mean square of the output."""
        return self._square(self.weights)

    def _square(self, weights: Array) -> float:
        return float(np.sum((weights @ self.second) * weights, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Found:
    """An exponent, its scale, and the squared error of every part without and with it."""

    alpha: float
    scale: Array
    before: tuple[float, ...]
    after: tuple[float, ...]


def best(
    parts: Sequence[Part], means: Array, quantized: Callable[[Array], Array], steps: int, *, root: int = 0
) -> Found:
    """Return the exponent among so many in [0, 1] with the least error in sum; 0, the first, scales nothing.

    With `root` all scales that are tried are powers of two that have such a root.
    """
    alphas = np.linspace(0, 1, steps)
    scales = [powers_of_two(each, root) if root else each for each in (salient(means, alpha) for alpha in alphas)]
    some = [part.sample() for part in parts]
    place = int(np.argmin([sum(part.error(scale, quantized) for part in some) for scale in scales]))
    before, after = (tuple(part.error(scales[each], quantized) for part in parts) for each in (0, place))
    if sum(after) > sum(before):  # the sample was not like the rest
        place, after = 0, before
    return Found(float(alphas[place]), scales[place], before, after)
