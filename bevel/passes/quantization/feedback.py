"""Quantize a layer input by input, and let the inputs not yet seen make up for the error of each (GPTQ).

With the upper triangular `U` of the inverse moment, `H^-1 = U^T U`, changing `w_j` by `e` while the inputs before `j`
are settled costs `(e / U_jj)^2` at best, which the weights after it reach by losing `e / U_jj * U_j,>j`. All outputs
are treated at once; far inputs follow a block later, in one matrix product. Inputs go from the largest second moment to
the smallest: each has the scale of the block it stands in, settled before, so the order leaves no trace in the model.
Source: Frantar et al. 2023, GPTQ.
"""

from typing import Any, Final

import numpy as np
from scipy.linalg import LinAlgError, cholesky, get_lapack_funcs
from scipy.linalg.blas import sgemm

from bevel.passes.fitting.second_order import DAMPING, LEAST_DIAGONAL, Damped
from bevel.passes.formats import Format, Grid

Array = np.ndarray[Any, Any]

# Inputs whose errors reach the far ones together.
TOGETHER: Final = 32
# Outputs from which the energy of all is estimated.
ENOUGH: Final = 512


def compensated(fmt: Format, weights: Array, grid: Grid, second: Array) -> tuple[Array, float]:
    """Return codes `[groups, in, out]` for weights, and the squared error they leave in the layer's output, relative.

    `grid` has the scale of every weight, `second` the second moments of the inputs `[groups, in, in]`.
    """
    codes, lost, energy = np.empty(weights.shape, np.uint8), 0.0, 0.0
    for group, moment in enumerate(second):
        order = np.argsort(-np.diag(moment), kind="stable")
        given = weights[group, order]
        energy += _energy(given, moment[np.ix_(order, order)])
        codes[group, order], error = _quantized(fmt, given, grid[group][order], _factor(moment, order))
        lost += error
    return codes, lost / energy if energy > 0 else 0.0


def inverse_factor(moment: Array) -> Array:
    """Return the upper triangular `U` with `U^T U` the inverse of a positive matrix; raises `LinAlgError` otherwise.

    >>> u = inverse_factor(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> bool(np.allclose(u.T @ u @ [[2, 1], [1, 3]], np.eye(2), atol=1e-6))
    True
    """
    # Backwards, a lower factor is an upper one: H = R R^T, so H^-1 = (R^-1)^T R^-1.
    lower = cholesky(moment[::-1, ::-1], lower=True, check_finite=False)
    (invert,) = get_lapack_funcs(("trtri",), (lower,))
    inverse, _ = invert(lower[::-1, ::-1], lower=0)
    factor: Array = np.triu(inverse)
    return factor


def _factor(moment: Array, order: Array) -> Array:
    """Return the factor of a damped moment in some order of inputs, from single precision where that is enough."""
    single = moment[np.ix_(order, order)].astype(np.float32)
    single[np.diag_indices_from(single)] += np.float32(DAMPING * np.trace(moment) / len(moment) + LEAST_DIAGONAL)
    try:
        return inverse_factor(single)
    except LinAlgError:
        return inverse_factor(Damped(moment).matrix[np.ix_(order, order)]).astype(np.float32)


def _energy(weights: Array, moment: Array) -> float:
    """Return the energy of a layer's output, estimated from some outputs spread over all if there are many."""
    some = np.ascontiguousarray(weights[:, :: -(-weights.shape[1] // ENOUGH)])
    found = float(np.vdot(some, moment.astype(np.float32) @ some))
    return found * int(weights.shape[1]) / max(int(some.shape[1]), 1)


def _quantized(fmt: Format, weights: Array, grid: Grid, factor: Array) -> tuple[Array, float]:
    """Return codes of weights `[in, out]`, which are written over, and the squared error of the outputs."""
    codes, lost = np.empty(weights.shape, np.uint8), 0.0
    for start in range(0, len(weights), TOGETHER):
        near = slice(start, start + TOGETHER)
        errors = _block(fmt, weights[near], grid[near], factor[near, near], codes[near])
        rest = weights[near.stop :]
        if rest.size:  # rest -= factor^T errors, in place
            sgemm(-1, errors.T, factor[near, near.stop :], beta=1, c=rest.T, overwrite_c=1)
        lost += float(np.vdot(errors, errors))  # the cost of each step, by the formula above
    return codes, lost


def _block(fmt: Format, weights: Array, grid: Grid, factor: Array, codes: Array) -> Array:
    errors = np.empty(weights.shape, np.float32)
    for place, row in enumerate(weights):
        codes[place] = fmt.codes(row, grid[place])
        errors[place] = (row - fmt.values(codes[place], grid[place])) / factor[place, place]
        weights[place + 1 :] -= factor[place, place + 1 :, None] * errors[place]
    return errors
