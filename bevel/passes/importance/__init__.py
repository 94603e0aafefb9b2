"""How much each entry of a group matters: functions from groups to scores, found through entry points."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context

__all__ = ["Importance"]


class Importance(Protocol):
    """Scores the entries of groups; larger is more important."""

    def __call__(self, analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
        """Return an array of shape [group size] for each group, by the group's name."""
