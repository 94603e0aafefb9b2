"""The trained slices of a reordered model's weights, and the places of the original that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevel.ir.axes import Dim
from bevel.ir.edit import entries
from bevel.ir.groups import Analysis
from bevel.passes.fitting.layers import Layer
from bevel.selection.units import Side

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Slice:
    """Rows or columns of a layer's weight that are trained.

    `ranges` are where they lie in the reordered weight, as `[start, stop, ...]` along `axis`. `index` says which places
    of the original they are, and `other` which place of the original each place along the other axis is.
    """

    layer: Layer
    axis: int
    ranges: tuple[int, ...]
    index: Array
    other: Array

    @property
    def weight(self) -> str:
        """The name of the weight."""
        return self.layer.weight.name or ""

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape."""
        sizes = {self.axis: self.layer.sizes[self.axis], 1 - self.axis: len(self.other)}
        return sizes[0], sizes[1]

    @property
    def is_read(self) -> bool:
        """Whether it is what the layer reads that is chosen, rows of the matrix in `x @ w`; else what it writes."""
        return self.axis == self.layer.in_axis

    @property
    def transposed(self) -> bool:
        """Whether the weight is held as `[out, in]`."""
        return self.layer.in_axis == 1

    def as_weight(self, trained: Array) -> Array:
        """Return what was trained, in the layout of the original weight."""
        laid = trained.T if self.transposed else trained
        return np.take(laid, np.argsort(self.other), axis=1 - self.axis)

    def as_trained(self, delta: Array) -> Array:
        """Return what `as_weight` gave as it is trained."""
        laid = np.take(delta, self.other, axis=1 - self.axis)
        return laid.T if self.transposed else laid


def slice_of(side: Side, chosen: range, taken: Mapping[Dim, Array], analysis: Analysis) -> Slice:
    """Find where the entries of a range lie once the groups are reordered."""
    axes = analysis.axes(side.layer.weight)
    assert axes is not None
    places = np.flatnonzero((side.owners >= chosen.start) & (side.owners < chosen.stop))
    index = entries(axes[side.axis], taken)[places]
    return Slice(side.layer, side.axis, runs(places), index, entries(axes[1 - side.axis], taken))


def runs(places: Array) -> tuple[int, ...]:
    """Return where runs of consecutive numbers start and stop.

    >>> runs(np.array([2, 3, 7]))
    (2, 4, 7, 8)
    """
    gaps = np.flatnonzero(np.diff(places) != 1)
    starts, stops = places[np.r_[0, gaps + 1]], places[np.r_[gaps, len(places) - 1]] + 1
    return tuple(int(number) for pair in zip(starts, stops, strict=True) for number in pair)
