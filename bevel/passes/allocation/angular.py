"""Layers that turn their stream far keep more than those that hardly turn it."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bevel.errors import UnsupportedModel
from bevel.ir.blocks import find_blocks
from bevel.ir.groups import Group
from bevel.ir.repetition import Layer, layers
from bevel.passes.allocation.problem import Allocate, Problem, Widths
from bevel.passes.blocks.angles import angles

STEEPNESS = 26.2
"""Of the sigmoid over mean distances. CFSP's code divides distances summed over 128 * 2048 tokens by 10,000."""

SLACK = 1.05
"""The layer that keeps the most keeps a little less than all."""


def angular(problem: Problem) -> Allocate:
    """Share what is kept between residual layers by the angular distance from their input to their output.

    A group inside a layer keeps its layer's share; one that several layers have, as the stream itself, keeps the mean.
    Source: the coarse importance of CFSP (Wang et al. 2025).
    """
    model = problem.analysis.model
    found = layers(find_blocks(model).innermost)
    if not found:
        raise UnsupportedModel(
            "the model has no residual blocks, whose angles could be compared", remedy="use allocation=global"
        )
    measured = angles(model, found, problem.context)
    distances = np.array([measured[layer.name] for layer in found])
    homes = {group.name: home(group, found) for group in problem.groups}

    def allocate(strength: float) -> Widths:
        shares = kept(distances, strength)
        sizes, everywhere = problem.sizes, 1 - strength
        return problem.widths(
            {name: sizes[name] * (everywhere if at is None else shares[at]) for name, at in homes.items()}
        )

    return allocate


def home(group: Group, found: Sequence[Layer]) -> int | None:
    """Return the place of the layer that alone has a group's tensors; None if several have, or none."""
    places: dict[ir.Node, int] = {
        node: place for place, layer in enumerate(found) for block in layer.blocks for node in block.nodes
    }
    at = {places.get(node) for member in group.members for node, _ in member.value.uses()}
    return at.pop() if len(at) == 1 else None


def kept(distances: np.ndarray, share: float) -> np.ndarray:
    """Return what each layer keeps when a share of all goes: 1 - share in the mean, and no more than all.

    >>> kept(np.array([0.1, 0.1, 0.1]), 0.25)
    array([0.75, 0.75, 0.75])
    >>> kept(np.array([0.1, 0.2, 0.3]), 0.5).round(2)
    array([0.07, 0.5 , 0.93])
    """
    weights = 1 / (1 + np.exp(-STEEPNESS * (distances - distances.mean())))
    deviations = weights / weights.mean() - 1
    most = deviations.max()
    room = share / (1 - share) if share < 1 else np.inf  # (1 - share) * (1 + deviation) <= 1
    shrink = min(1.0, room / most / SLACK) if most > 0 else 1.0
    parts: np.ndarray = (1 - share) * (1 + shrink * deviations)
    return parts
