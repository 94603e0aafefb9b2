"""How large the scales are: the formulas, from ranges to factors.

    smoothing     s = max|X|^a / max|W|^(1 - a)         X / s, W * s: outliers move from activations into weights
    equalizing    s = sqrt(range of what follows / range of what comes before): both are then the same
    salient       s = mean|X|^a, normalised             W * s, X / s: weights that meet large inputs get finer steps
    taming        s = (max|X| / the largest normal)^a   X / s, W * s: for outliers alone, 1 for all others

Source: Xiao et al. 2023, SmoothQuant; Nagel et al. 2019, Data-Free Quantization Through Weight Equalization; Lin et al.
2024, AWQ; Ding et al. 2024, CBQ (taming).
"""

from typing import Any, Final

import numpy as np

from bevel.passes.scaling.outliers import outliers

Array = np.ndarray[Any, Any]

# How far a factor may be from the geometric mean of all: a channel that is all but zero says nothing about a scale.
WIDEST: Final = 1e5


def smoothing(inputs: Array, weights: Array, alpha: float) -> Array:
    """Return by what to divide inputs, and multiply weights, from the largest magnitudes of both.

    >>> smoothing(np.array([16.0, 1.0, 0.0]), np.array([1.0, 4.0, 1.0]), 0.5).tolist()
    [4.0, 0.5, 1.0]
    """
    known = (inputs > 0) & (weights > 0)
    x, w = np.where(known, inputs, 1.0), np.where(known, weights, 1.0)
    return usable(x**alpha / w ** (1 - alpha), known)


def equalizing(before: Array, after: Array) -> Array:
    """Return by what to multiply what comes before, and divide what follows, so that their ranges are the same.

    >>> equalizing(np.array([1.0, 4.0, 0.0]), np.array([4.0, 1.0, 1.0])).tolist()
    [2.0, 0.5, 1.0]
    """
    return smoothing(after, before, 0.5)


def salient(means: Array, alpha: float) -> Array:
    """Return by what to multiply weights, and divide inputs, from the mean magnitude of the inputs.

    The largest and the least factor are as far from 1.

    >>> salient(np.array([4.0, 1.0]), 0.5).round(6).tolist()
    [1.414214, 0.707107]
    """
    known = means > 0
    scale = usable(np.where(known, means, 1.0) ** alpha, known)
    if not known.any():
        return scale
    return np.where(known, scale / np.sqrt(scale[known].max() * scale[known].min()), 1.0)


def taming(inputs: Array, alpha: float) -> Array:
    """Return by what to divide inputs, and multiply weights, so that those that stand out come nearer to the others.

    >>> taming(np.array([1.0, 2.0, 1.5, 1.2, 32.0, 1.1, 1.7, 1.3]), 0.5).tolist()
    [1.0, 1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0]
    """
    out = outliers(inputs)
    normal = inputs[~out].max(initial=0.0)
    if not normal > 0:
        return np.ones_like(inputs)
    return usable(np.where(out, inputs / normal, 1.0) ** alpha, np.ones(inputs.shape, bool))


def usable(scale: Array, known: Array) -> Array:
    """Keep factors within a range about their geometric mean; 1 where nothing is known."""
    if not known.any():
        return np.ones_like(scale)
    middle = np.exp(np.log(scale[known]).mean())
    return np.where(known, np.clip(scale, middle / WIDEST, middle * WIDEST), 1.0)


def powers_of_two(scale: Array, root: int = 1) -> Array:
    """Return the nearest powers of two, which round nothing; such that a root of them is one, too.

    >>> powers_of_two(np.array([0.3, 1.0, 3.0])).tolist(), powers_of_two(np.array([0.3, 1.0, 3.0]), 2).tolist()
    ([0.25, 1.0, 4.0], [0.25, 1.0, 4.0])
    >>> powers_of_two(np.array([2.2]), 2).tolist()
    [4.0]
    """
    return np.asarray(np.exp2(root * np.rint(np.log2(scale) / root)))
