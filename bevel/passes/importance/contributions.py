"""What the entries of groups contribute to the nodes that sum over them: their weights times what is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance.consumers import Consumer, Reading, consumers
from bevel.passes.importance.readings import Channels, measure
from bevel.passes.importance.weights import lifted

Parts = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Contributions:
    """The nodes that sum over groups, and what was seen of the activations that they read."""

    analysis: Analysis
    consumers: Sequence[Consumer]
    seen: dict[Reading, Channels]

    @classmethod
    def of(cls, analysis: Analysis, groups: Sequence[Group], context: Context) -> "Contributions":
        """Run the model over the calibration inputs once, and look at what the consumers of groups read."""
        found = consumers(analysis, groups)
        readings = [reading for consumer in found for reading in consumer.readings]
        return cls(analysis, found, measure(analysis.model, readings, context))

    def energies(self) -> Parts:
        """Return a part for each activation that is read: the mean square of the channels of an entry, added up."""
        parts: Parts = {}
        # Layers that read one value, as queries, keys and values do, say the same.
        pairs = {
            (group, reading): None
            for consumer in self.consumers
            for reading in consumer.readings
            for group in consumer.groups
        }
        for group, reading in pairs:
            if reading in self.seen:
                parts.setdefault(group.name, []).append(self._lifted(self.seen[reading].energy, reading, group))
        return parts

    def weighted(self, column: Callable[[np.ndarray], np.ndarray], activity: Callable[[Channels], np.ndarray]) -> Parts:
        """Return a part for each weight that reads a group: what `column` makes of it, times the channel's activity.

        `column` makes `[channels]` of a weight `[before, channels, after]`. Groups that no weight reads are left out.
        """
        parts: Parts = {}
        for consumer in self.consumers:
            reading = consumer.readings[0] if consumer.readings else None
            if consumer.weight is None or reading not in self.seen:
                continue
            active, numbers = activity(self.seen[reading]), consumer.columns(column)
            if numbers.shape == active.shape:
                for group in consumer.groups:
                    parts.setdefault(group.name, []).append(self._lifted(numbers * active, reading, group))
        return parts

    def compared(self) -> Parts:
        """Return a part for each node that multiplies activations along a group, as queries and keys.

        Of a product of two matrices, one place of the axis between them adds a matrix whose norm is the product of two
        norms, which is given here.
        """
        products: dict[tuple[str, int], np.ndarray] = {}
        for consumer in self.consumers:
            for reading in consumer.readings if consumer.weight is None else ():
                for group in consumer.groups if reading in self.seen else ():
                    norm = np.sqrt(self._lifted(self.seen[reading].energy, reading, group))
                    key = group.name, id(consumer.node)
                    products[key] = products[key] * norm if key in products else norm
        parts: Parts = {}
        for (name, _), product in products.items():
            parts.setdefault(name, []).append(product)
        return parts

    def _lifted(self, numbers: np.ndarray, reading: Reading, group: Group) -> np.ndarray:
        axes = self.analysis.axes(reading.value)
        assert axes is not None
        return lifted(numbers, axes[reading.position], group.dim)
