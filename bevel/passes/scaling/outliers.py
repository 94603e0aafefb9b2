"""Which values stand out from the others, coarse to fine.

Coarse: above the third quartile by more than 1.5 times the distance of the quartiles. Fine: of these, in order, those
from a gap on that is wide for how much the ones below it vary; the others are normal. A gap `d` below which the values
above the coarse bound have the variance `v` is as wide as `d^2 - v`; the widest counts.

Source: Ding et al. 2024, CBQ: Cross-Block Quantization for Large Language Models (coarse-to-fine pre-processing).
"""

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

REACH: Final = 1.5


def outliers(values: Array) -> Array:
    """Return which values stand out.

    >>> outliers(np.array([1.0, 2.0, 1.5, 1.2, 40.0, 1.1, 1.7, 1.3])).nonzero()[0].tolist()
    [4]
    >>> outliers(np.array([1.0, 2.0, 1.5, 1.2, 1.1, 1.7])).sum().item()
    0
    """
    first, third = np.quantile(values, (0.25, 0.75))
    bound = third + REACH * (third - first)
    candidates = np.sort(values[values > bound])
    if not candidates.size:
        return np.zeros(values.shape, bool)
    below = np.concatenate([values[values <= bound].max(keepdims=True), candidates[:-1]])
    spread = [candidates[:count].var() if count else 0.0 for count in range(len(candidates))]
    start = np.argmax(np.square(candidates - below) - spread)
    return np.asarray(values >= candidates[start])
