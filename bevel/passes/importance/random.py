"""Score at random: the control that every other importance has to beat."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance


@importance()
def random(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Draw a score for each entry from the run's seed."""
    generator = np.random.default_rng(context.seed)
    return {group.name: generator.random(group.size) for group in groups}
