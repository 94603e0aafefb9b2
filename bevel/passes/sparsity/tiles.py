"""Weights in tiles: rectangles of outputs and inputs, scored and dropped as one."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevel.errors import UsageError
from bevel.passes.fitting.second_order import SecondOrder

Array = np.ndarray[Any, Any]

SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Tile:
    """So many outputs by so many inputs; those at the ends of a matrix are smaller where it does not divide."""

    outputs: int
    inputs: int

    @classmethod
    def parse(cls, text: str) -> "Tile":
        """Read a size; raise `UsageError` if it is none.

        >>> Tile.parse("16x4")
        Tile(outputs=16, inputs=4)
        """
        found = SIZE.fullmatch(text)
        if found is None:
            raise UsageError(f"{text!r} is no tile", remedy="write OUTPUTSxINPUTS, as in 16x16 or 1x4")
        return cls(int(found[1]), int(found[2]))

    def times(self, taps: int) -> "Tile":
        """Return the tile in columns of a kernel's matrix, where every input channel has so many."""
        return Tile(self.outputs, self.inputs * taps)

    def sums(self, values: Array) -> Array:
        """Add up `[groups, out, in]` over each tile.

        >>> Tile(2, 2).sums(np.ones((1, 3, 4))).tolist()
        [[[4.0, 4.0], [2.0, 2.0]]]
        """
        rows = np.add.reduceat(values, np.arange(0, values.shape[1], self.outputs), axis=1)
        return np.add.reduceat(rows, np.arange(0, values.shape[2], self.inputs), axis=2)

    def spread(self, tiles: Array, shape: tuple[int, ...]) -> Array:
        """Return what is said of tiles for each of the weights `[groups, out, in]` in them; the way back of `sums`.

        >>> Tile(2, 3).spread(np.array([[[1, 2]]]), (1, 2, 4)).tolist()
        [[[1, 1, 1, 2], [1, 1, 1, 2]]]
        """
        wide = np.repeat(np.repeat(tiles, self.outputs, axis=1), self.inputs, axis=2)
        return wide[:, : shape[1], : shape[2]]


def errors_alone(weights: Array, moments: list[SecondOrder], tile: Tile) -> Array:
    """Return the least error of the output without each tile alone, the rest of its rows making up for it.

    That is `tr(W_t (H^-1[t, t])^-1 W_t^T)` over the inputs `t` of the tile.
    """
    rows = np.empty((*weights.shape[:2], -(-weights.shape[2] // tile.inputs)))
    for group, moment in enumerate(moments):
        for place, start in enumerate(range(0, weights.shape[2], tile.inputs)):
            columns = slice(start, start + tile.inputs)
            part = weights[group][:, columns]
            rows[group, :, place] = np.sum(np.linalg.solve(moment.inverse[columns, columns], part.T) * part.T, axis=0)
    return Tile(tile.outputs, 1).sums(rows)


def refit(weights: Array, dropped: Array, moments: list[SecondOrder], tile: Tile) -> Array:
    """Return the best weights for the tiles that stay, zero elsewhere; the outputs of a tile share their mask.

    Outputs that lose nothing keep their weights bit for bit.
    """
    result = np.where(dropped, 0.0, weights)
    for group, moment in enumerate(moments):
        for start in range(0, weights.shape[1], tile.outputs):
            rows = slice(start, start + tile.outputs)
            keep = np.flatnonzero(~dropped[group, start])
            if 0 < len(keep) < weights.shape[2]:
                result[group, rows, keep] = moment.refit(weights[group, rows], keep).T
    return result
