"""Score by how much an entry's contribution fluctuates."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.contributions import Contributions
from bevel.passes.importance.weights import sum_of_squares


@importance(aggregate="sum", normalize="std")
def flap(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the variance of its channels times the squared norm of the weights that read them.

    What does not fluctuate can be dropped without loss if its mean goes into a bias. One run over the calibration
    inputs. Entries that no weight reads are scored by the squared norms of what is compared along them, as no bias
    makes up for those. Source: An et al. 2024, Fluctuation-based Adaptive Structured Pruning for Large Language Models.
    """
    seen = Contributions.of(analysis, groups, context)
    compared = {name: np.square(found) for name, found in seen.compared().items()}
    weighted = seen.weighted(sum_of_squares, lambda channels: channels.variance)
    return compared | {name: np.stack(found) for name, found in weighted.items()}
