"""What is put in order: a group, in one order, or head by head where its heads allow that."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevel.ir.axes import Axis
from bevel.ir.edit import entries, permute
from bevel.ir.groups import Analysis, Group
from bevel.ir.within import Cells, Fibre, cells_of, hosts, outer_dims, permute_within

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Target:
    """A group, and the heads that may each have an order of its own, if any.

    Scores and orders are `[count, size]`, a row for each head, or one row.
    """

    group: Group
    heads: Group | None = None

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name

    @property
    def shape(self) -> tuple[int, int]:
        """How many orders there are, and of how many entries."""
        return (1 if self.heads is None else self.heads.size), self.group.size

    @property
    def identity(self) -> Array:
        """The orders that change nothing."""
        count, size = self.shape
        return np.tile(np.arange(size), (count, 1))

    def cells(self, axis: Axis) -> list[Cells]:
        """Return which entry and head each place of an axis holds, for each time the group's dimension stands there."""
        return cells_of(axis, self.group.dim, None if self.heads is None else self.heads.dim)

    def lifted(self, numbers: Array, axis: Axis, only: Container[tuple[int, ...]] | None = None) -> Array:
        """Return the largest of the numbers of an axis's places for each entry of each head.

        With `only`, the group's dimension counts where it stands at one of these paths.
        """
        found = np.zeros(self.shape)
        for cells in self.cells(axis):
            here = (cells.entries >= 0) & (only is None or cells.path in only)
            np.maximum.at(found, (cells.heads[here], cells.entries[here]), numbers[here])
        return found

    def places(self, axis: Axis, orders: Array) -> Array:
        """Return from where each place of an axis is taken with these orders."""
        if self.heads is None:
            return entries(axis, {self.group.dim: orders[0]})
        moved: Array = np.arange(axis.size) + Fibre(self.group.dim, self.heads.dim, orders).moved(axis)
        return moved


def targets(analysis: Analysis, groups: Sequence[Group], *, per_head: bool) -> list[Target]:
    """Return what is ordered of each group: head by head where that is asked for and nothing ties the heads."""
    heads = hosts(analysis, groups) if per_head else {}
    return [Target(group, heads.get(group)) for group in groups]


def innermost(analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """Leave out groups that another one of these lies inside of: heads, where their channels are there."""
    around = {dim for group in groups for dim in outer_dims(analysis, group)}
    return [group for group in groups if group.dim not in around]


def put(analysis: Analysis, orders: Mapping[Target, Array]) -> int:
    """Put targets in order, and return how many change."""
    changed = {target: order for target, order in orders.items() if not np.array_equal(order, target.identity)}
    permute_within(analysis, {target.name: order for target, order in changed.items() if target.heads is not None})
    permute(analysis, {target.name: order[0] for target, order in changed.items() if target.heads is None})
    return len(changed)
