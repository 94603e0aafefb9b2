"""Score by the size of the activations."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.contributions import Contributions


@importance(aggregate="norm")
def activation(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the root mean square of its channels, wherever a node sums over them.

    One run over the calibration inputs. The fine score of CFSP reduces to this: each of its weight terms is normalised
    to the same sum for every channel. Source: Wang et al. 2024, CFSP.
    """
    parts = Contributions.of(analysis, groups, context).energies()
    return {name: np.sqrt(found) for name, found in parts.items()}
