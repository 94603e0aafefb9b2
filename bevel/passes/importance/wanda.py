"""Score by the size of weights times that of the activations they meet."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.contributions import Contributions
from bevel.passes.importance.readings import Channels


@importance(aggregate="sum")
def wanda(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the sum of `|W| * rms(x)` over the weights that read it, for every layer that does.

    One run over the calibration inputs. Entries that no weight reads, as those along which queries and keys are
    compared, are scored by the product of the norms of what is compared. Source: Sun et al. 2024, A Simple and
    Effective Pruning Approach for Large Language Models, lifted to coupled groups.
    """
    seen = Contributions.of(analysis, groups, context)
    parts = seen.compared() | seen.weighted(_absolute, _size)
    return {name: np.stack(found) for name, found in parts.items()}


def _absolute(array: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.abs(array).sum((0, 2))
    return total


def _size(channels: Channels) -> np.ndarray:
    size: np.ndarray = np.sqrt(channels.energy)
    return size
