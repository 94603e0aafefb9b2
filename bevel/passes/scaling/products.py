"""What meets in products of activations: queries and keys, what is written to a state and what is read of it.

No layer reads either of them, so that there is no weight to move a range into; but a scale of one against the other
leaves their product as it is. Their ranges become the same, entry by entry, so that no outlier is left on either side
that the other one could take half of.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.action import ADDED
from bevel.ir.coupling import find_action
from bevel.ir.groups import Analysis
from bevel.ir.strands import Occurrence
from bevel.passes.base import Context
from bevel.passes.fitting.layers import layers
from bevel.passes.fitting.magnitudes import measured
from bevel.passes.fitting.moments import reached
from bevel.passes.scaling.factors import equalizing, powers_of_two
from bevel.passes.scaling.motions import Direction, directions, largest_of, readers, scaling, spread

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Meeting:
    """A direction that multiplies what some layers give, and divides what others give or the same ones elsewhere."""

    direction: Direction
    left: tuple[Occurrence, ...]
    right: tuple[Occurrence, ...]

    @property
    def places(self) -> tuple[Occurrence, ...]:
        """Both sides."""
        return (*self.left, *self.right)


def meetings(analysis: Analysis, only: Sequence[str], skip: Sequence[str]) -> list[Meeting]:
    """Return the directions in which layers give both sides of a product, and that no layer reads."""
    given, by_data = set(_given(analysis.model)), readers(analysis.model)
    found = []
    for each in directions(analysis, only, skip):
        powers = {place: power for place, power in each.motion.exponents.items() if place.value in given}
        known = all(each.readable(place) and abs(power) == 1 for place, power in powers.items())
        left, right = (tuple(place for place, power in powers.items() if power == sign) for sign in (1, -1))
        if left and right and known and scaling(analysis, each, by_data) is None:
            found.append(Meeting(each, left, right))
    return found


def even_out(
    analysis: Analysis, found: Sequence[Meeting], context: Context, *, exact: bool
) -> Iterator[tuple[float, float]]:
    """Give both sides of each product the same ranges; yield by how much the largest stood out, before and after."""
    ranges = _ranges(analysis.model, [place for each in found for place in each.places], context)
    for each in found:
        before = [_largest(analysis, each.direction, side, ranges) for side in (each.left, each.right)]
        scale = equalizing(*before)
        scale = powers_of_two(scale) if exact else scale
        each.direction.carry_out(analysis, scale)
        for sign, side in ((1, each.left), (-1, each.right)):
            for place in side:
                ranges[_axis(place)] *= spread(scale**sign, each.direction.owners(analysis, [place]))
        after = [_largest(analysis, each.direction, side, ranges) for side in (each.left, each.right)]
        yield max(map(_outlier, before)), max(map(_outlier, after))


def _given(model: ir.Model) -> Iterator[ir.Value]:
    """Yield what layers give, with their biases added."""
    for layer in layers(model):
        value = layer.node.outputs[0]
        users = [use.node for use in value.uses()]
        value = users[0].outputs[0] if len(users) == 1 and _adds_weight(users[0]) else value
        if any(use.node.graph is model.graph for use in value.uses()):
            yield value


def _adds_weight(node: ir.Node) -> bool:
    weight = any(each is not None and each.is_initializer() for each in node.inputs)
    return weight and find_action(node.domain, node.op_type) == ADDED


def _ranges(model: ir.Model, places: Sequence[Occurrence], context: Context) -> dict[tuple[ir.Value, int], Array]:
    """Return the largest magnitudes along the axes of some places, gathered in one walk through the model."""
    wanted: dict[ir.Node, set[tuple[ir.Value, int]]] = {}
    order = {node: number for number, node in enumerate(model.graph)}
    for place in places:
        first = min((use.node for use in place.value.uses() if use.node in order), key=order.__getitem__)
        wanted.setdefault(first, set()).add(_axis(place))
    return {
        (value, axis): measured(walk.values(value), axis).largest
        for node, walk in reached(model, list(wanted), context)
        for value, axis in wanted[node]
    }


def _axis(place: Occurrence) -> tuple[ir.Value, int]:
    return place.value, place.axis


def _largest(
    analysis: Analysis,
    direction: Direction,
    side: Sequence[Occurrence],
    ranges: Mapping[tuple[ir.Value, int], Array],
) -> Array:
    """Return the largest magnitude of each entry on one side of a product."""
    found = [largest_of(ranges[_axis(place)], direction.owners(analysis, [place]), direction.size) for place in side]
    return np.asarray(np.max(found, axis=0))


def _outlier(largest: Array) -> float:
    """Return by how much the largest entry stands out over the median one."""
    middle = float(np.median(largest))
    return float(largest.max()) / middle if middle > 0 else 1.0
