"""Quantize a layer input by input, and let the inputs not yet seen make up for the error of each (GPTQ).

With the lower triangular `L` of the moment, `H = L L^T`, the error `d` of the weights costs the output

    d^T H d = sum_j (L_jj d_j + sum_k>j L_kj d_k)^2,

so that from the last input to the first each term is least where the weight is rounded from
`w_j + sum_k>j L_kj / L_jj d_k`. This is GPTQ, which solves for the inverse instead, without the inverse (Chen et al.
2025, The Geometry of LLM Quantization). All outputs are treated at once, and inputs in halves of halves, so that nearly
all is products of large matrices. Inputs go from the largest second moment to the smallest: each has the scale of the
block it stands in, settled before, so the order leaves no trace in the model.
Source: Frantar et al. 2023, GPTQ.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.passes.fitting.damping import damping
from bevel.passes.fitting.second_order import LEAST_DIAGONAL, Damped
from bevel.passes.fitting.triangular import factor
from bevel.passes.formats import Format, Grid

Array = np.ndarray[Any, Any]

# Inputs that are settled one after the other.
TOGETHER: Final = 32
# Outputs that a product is made of at a time: more would need the memory, fewer the time.
STRIP: Final = 1024
# Outputs from which the energy of all is estimated.
ENOUGH: Final = 128


def compensated(fmt: Format, weights: Array, grid: Grid, second: Array, rows: int | None = None) -> tuple[Array, float]:
    """Return codes `[groups, in, out]` for weights, and the squared error they leave in the layer's output, relative.

    `grid` has the scale of every weight, `second` the second moments of the inputs `[groups, in, in]`, which were seen
    in so many rows; any number if none is given.
    """
    codes, lost, energy = np.empty(weights.shape, np.uint8), 0.0, 0.0
    for group, moment in enumerate(second):
        order = np.argsort(np.diag(moment), kind="stable")
        share = damping(moment[np.ix_(order, order)], rows)
        single = moment.astype(np.float32)
        layer = _Layer(fmt, weights[group], grid[group], order, _factor(moment, single, order, share), codes[group])
        change = layer.settled()
        energy += _energy(weights[group], single)
        lost += _energy(change, single[np.ix_(order, order)])
    return codes, lost / energy if energy > 0 else 0.0


def _factor(moment: Array, single: Array, order: Array, share: float) -> Array:
    """Return `L_kj / L_jj` of a damped moment in some order of inputs, in single precision."""
    found: Array = single[np.ix_(order, order)]
    found[np.diag_indices_from(found)] += np.float32(share * np.trace(moment) / len(moment) + LEAST_DIAGONAL)
    try:
        factor(found)
    except np.linalg.LinAlgError:
        found = np.linalg.cholesky(Damped(moment, share).matrix[np.ix_(order, order)]).astype(np.float32)
    found /= np.diag(found).copy()
    return found


def _energy(weights: Array, moment: Array) -> float:
    """Return the energy of a layer's output, estimated from some outputs spread over all if there are many."""
    some = np.ascontiguousarray(weights[:, :: -(-weights.shape[1] // ENOUGH)])
    found = float(np.vdot(some, moment @ some))
    return found * int(weights.shape[1]) / max(int(some.shape[1]), 1)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Weights `[in, out]` with their grid, the order of inputs with the factor of their moment, and codes to write."""

    fmt: Format
    weights: Array
    grid: Grid
    order: Array
    factor: Array
    codes: Array

    def settled(self) -> Array:
        """Choose the codes of all inputs, and return what the weights lose, in the order of the inputs."""
        work: Array = self.weights[self.order]
        self._settle(work, 0, len(work))
        return work

    def _settle(self, work: Array, start: int, stop: int) -> None:
        """Choose codes of some inputs, the last first; `work` has what they are rounded from, then their errors."""
        if stop - start <= TOGETHER:
            self._settle_each(work[start:stop], slice(start, stop))
            return
        middle = (start + stop) // 2
        self._settle(work, middle, stop)
        factor = self.factor[middle:stop, start:middle].T
        for strip in range(0, work.shape[1], STRIP):
            outputs = slice(strip, strip + STRIP)
            work[start:middle, outputs] += factor @ work[middle:stop, outputs]
        self._settle(work, start, middle)

    def _settle_each(self, work: Array, some: slice) -> None:
        inputs = self.order[some]
        weights, grid, factor = self.weights[inputs], self.grid[inputs], self.factor[some, some]
        errors = np.empty_like(work)
        for place in range(len(work) - 1, -1, -1):
            row = work[place]
            # Not `@`: BLAS would divide so little among threads, and wait for them.
            row += np.einsum("k,ko->o", factor[place + 1 :, place], errors[place + 1 :])
            np.subtract(weights[place], self.fmt.rounded(row, grid[place]), out=errors[place])
        self.codes[inputs] = self.fmt.codes(work, grid)
        work[:] = errors
