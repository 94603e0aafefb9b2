"""Iterative schedules: how much is gone after each step, and the model between steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from bevel.ir.edit import select
from bevel.ir.groups import Analysis, Group, analyse
from bevel.passes.allocation.keeps import Keeps, composed

Schedule: TypeAlias = Literal["linear", "geometric"]


def stages(share: float, steps: int, schedule: Schedule) -> list[float]:
    """Return the share that is gone after each step: by as much each time, or by the same share of what is left.

    >>> stages(0.75, 2, "linear"), stages(0.75, 2, "geometric")
    ([0.375, 0.75], [0.5, 0.75])
    """
    if schedule == "linear":
        return [share * step / steps for step in range(1, steps)] + [share]
    return [1 - (1 - share) ** (step / steps) for step in range(1, steps)] + [share]


@dataclass(frozen=True)
class Cut:
    """A model that is cut in steps, on clones: `base` as it was before the latest step, and what steps keep.

    `sizes` has the groups that take part, by name, as they were at first. A group that has one entry left is none.
    """

    base: Analysis
    sizes: Mapping[str, int]
    keeps: Keeps = field(default_factory=dict)
    latest: Keeps = field(default_factory=dict)

    @cached_property
    def present(self) -> Analysis:
        """The model as it is after the latest step."""
        if not self.latest:
            return self.base
        model = self.base.model.clone()
        select(model, self.latest)
        return analyse(model)

    @property
    def groups(self) -> list[Group]:
        """The groups that take part and are still there."""
        return [group for group in self.present.groups if group.size > 1 and group.size == self._size(group.name)]

    def after(self, step: Keeps) -> "Cut":
        """Return the cut after one more step."""
        return Cut(self.present, self.sizes, composed(self.keeps, step), step)

    def _size(self, name: str) -> int:
        return len(self.keeps[name]) if name in self.keeps else self.sizes.get(name, 0)
