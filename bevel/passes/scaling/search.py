"""The exponent of the salient scales: the one under which quantized weights give the outputs best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevel.passes.scaling.factors import powers_of_two, salient
from bevel.passes.scaling.motions import spread

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Part:
    """A layer as the search sees it.

    `weights` `[groups, out, in]`, the second moment of its input `[groups, in, in]`, and for each input `[groups, in]`
    the entry that scales it, -1 for none, and how it is scaled already.
    """

    weights: Array
    second: Array
    owners: Array
    base: Array

    def error(self, scale: Array, quantized: Callable[[Array], Array]) -> float:
        """Return the squared error of the output with weights that were scaled, quantized and scaled back."""
        factor = (self.base * spread(scale, self.owners))[:, None]
        change = quantized(self.weights * factor) / factor - self.weights
        return float(np.sum((change @ self.second) * change))

    @property
    def energy(self) -> float:
        """The mean square of the output."""
        return float(np.sum((self.weights @ self.second) * self.weights))


def best(
    parts: Sequence[Part], means: Array, quantized: Callable[[Array], Array], steps: int, *, exact: bool = False
) -> tuple[float, Array]:
    """Return the exponent among so many in [0, 1] with the least error in sum, and its scale; 0 scales nothing.

    With `exact` all scales that are tried are powers of two.
    """
    alphas = np.linspace(0, 1, steps)
    scales = [powers_of_two(each) if exact else each for each in (salient(means, alpha) for alpha in alphas)]
    errors = [sum(part.error(scale, quantized) for part in parts) for scale in scales]
    found = int(np.argmin(errors))
    return float(alphas[found]), scales[found]
