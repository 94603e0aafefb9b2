"""The order in which a group's entries are missed least: one after the other goes, and the rest make up for it.

Scores of entries that are dropped alone say nothing of two that stand in for each other: either can go, not both. So
entries are dropped in rounds, the cheapest first, and what is left is scored anew with the weights and the inverse
moment that a layer has without them:

    W'    = W    - W[:, P]    (H^-1[P, P])^-1 H^-1[P, :]
    H'^-1 = H^-1 - H^-1[:, P] (H^-1[P, P])^-1 H^-1[P, :]

Only what belongs to the inputs of the group is ever needed of either. Source: Kurtic et al. 2023, ZipLM.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from bevel.passes.fitting.second_order import errors
from bevel.passes.fitting.triangular import STRIP

Array = np.ndarray[Any, Any]

# Rounds in which a large group is emptied: products of large matrices instead of thousands of small ones.
ROUNDS: Final = 48


class Reader:
    """What one matrix that reads a group knows: its weights, and the inverse of the damped moment of its input.

    `units` lists the inputs of each entry `[entries, inputs]`; errors are divided by `scale`.
    """

    def __init__(self, w: Array, inverse: Array, units: Array, scale: float) -> None:
        inputs = units.ravel()
        whole = np.array_equal(inputs, np.arange(len(inverse)))
        self.w = w if whole else w[:, inputs]
        self.inverse = inverse if whole else inverse[np.ix_(inputs, inputs)]
        self.units: Array = np.arange(len(inputs)).reshape(units.shape)
        self.scale = scale

    def scores(self) -> Array:
        """Return the error of dropping each entry that is left, alone."""
        return errors(self.w, self.inverse, self.units) / self.scale

    def drop(self, gone: Array) -> float:
        """Drop entries at once, let the others make up for them, and return the error that this leaves."""
        dropped = self.units[gone].ravel()
        left = np.delete(self.units, gone, axis=0).ravel()
        across = self.inverse[np.ix_(dropped, left)]
        lost = self.w[:, dropped]
        block = np.linalg.inv(self.inverse[np.ix_(dropped, dropped)])
        share = block @ across
        error = float(np.vdot(lost @ block, lost)) / self.scale
        self.w = self.w[:, left] - lost @ share
        self.inverse = self.inverse[np.ix_(left, left)]
        for start in range(0, len(left), STRIP):
            some = slice(start, start + STRIP)
            self.inverse[some] -= across.T[some] @ share
        self.units = np.arange(len(left)).reshape(-1, self.units.shape[1])
        return error


def eliminate(readers: Sequence[Reader]) -> Array:
    """Return what dropping each entry adds to the error of all that read it when those that matter less are gone.

    The figures ascend in the order in which entries go, so those with the highest are what should be left at any
    width, and the figures of those that went add up to their error (to a little more where dropping some made others
    matter less). Two inputs that are alike: one is missed little, the last of them much.

    >>> alike = np.linalg.inv(np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 0.5]]))
    >>> eliminate([Reader(np.ones((1, 3)), alike, np.arange(3)[:, None], 1.0)]).round(2).tolist()
    [0.02, 3.96, 0.5]
    """
    size = len(readers[0].units)
    found = np.zeros(size)
    present = np.arange(size)
    most = -(-size // ROUNDS)
    least = 0.0
    while len(present):
        scores = sum((reader.scores() for reader in readers), np.zeros(len(present)))
        gone = np.argsort(scores, kind="stable")[:most]
        joint = sum(reader.drop(gone) for reader in readers)
        parts = scores[gone] * (joint / max(float(scores[gone].sum()), np.finfo(np.float64).tiny))
        found[present[gone]] = np.maximum.accumulate(np.maximum(parts, least))
        least = float(found[present[gone[-1]]])
        present = np.delete(present, gone)
    return found
