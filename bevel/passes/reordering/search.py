"""Try orders and keep those with the least error under a block format.

Candidates are the order that is there, and every size of entries (of weights, of activations, of both), sorted and
dealt. A candidate's error is that of the outputs of the layers that read the group, and of the keys that are kept of
it; each is a share of the energy that is there, and they add up.

Source: Lin et al. 2024, QServe (channel orders by a metric); the search over metrics and what it is judged by are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bevel.ir.groups import Analysis
from bevel.passes.base import Context
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import moments
from bevel.passes.formats import Format
from bevel.passes.reordering.errors import output_errors, vector_error
from bevel.passes.reordering.held import Holdings
from bevel.passes.reordering.orders import Arrangement, arranged
from bevel.passes.reordering.rows import columns, inputs, norms, readers
from bevel.passes.reordering.scores import MEASURES, measured, relative
from bevel.passes.reordering.targets import Target
from bevel.passes.reordering.vectors import Vectors, watch

Array = np.ndarray[Any, Any]

TRIED: Final[tuple[Arrangement, ...]] = ("descending", "dealt")
GUESSES: Final = 256  # made-up keys that stand in for those of data


@dataclass
class Trial:
    """The orders that are tried for a target, by what they are, and the error of each so far."""

    orders: dict[str, Array]
    errors: Array = field(init=False)

    def __post_init__(self) -> None:
        self.errors = np.zeros(len(self.orders))

    @property
    def best(self) -> int:
        """The first of the candidates with the least error; what is there is the first of all."""
        return int(np.argmin(self.errors))

    @property
    def order(self) -> Array:
        """The orders that are best."""
        return list(self.orders.values())[self.best]

    @property
    def gain(self) -> float:
        """The error of the best orders over that of the orders that are there; 1 if there is none."""
        return float(self.errors[self.best] / self.errors[0]) if self.errors[0] > 0 else 1.0

    def __str__(self) -> str:
        return f"{list(self.orders)[self.best]}, error {self.gain:.3f}x"


@dataclass(frozen=True)
class Search:
    """A search over orders of the channels of a model, for a format in blocks of so many entries."""

    analysis: Analysis
    targets: Sequence[Target]
    context: Context
    fmt: Format
    block: int

    def run(self) -> dict[Target, Trial]:
        """Return what was tried for each target; without data, of weights alone."""
        data = not self.context.calibration.made_up
        seen = watch(self.analysis, self.targets, self.context) if data else {target: [] for target in self.targets}
        readers_of = readers(self.analysis, self.targets)
        made = norms(self.analysis, self.targets, self.context)
        read = self._columns(readers_of)
        trials = {
            target: Trial(self._candidates(target, made[target], read.get(target), seen[target]))
            for target in self.targets
        }
        for layer, second in self._layers(list(readers_of), data):
            self._judge_layer(layer, second, {target: trials[target] for target in readers_of[layer]})
        for target, trial in trials.items():
            self._judge_keys(target, trial, seen[target], made[target])
        return trials

    def _layers(self, found: Sequence[Layer], data: bool) -> Iterator[tuple[Layer, Array | None]]:
        if not data:
            yield from ((layer, None) for layer in found)
            return
        for layer, moment in moments(self.analysis.model, found, self.context):
            yield layer, moment.second if moment.finite else None

    def _columns(self, readers_of: Mapping[Layer, Sequence[Target]]) -> dict[Target, Array]:
        """Return the norm of what reads each entry, over all layers that do."""
        found: dict[Target, Array] = {}
        for layer, reading in readers_of.items():
            numbers = np.sqrt(np.square(layer.content()).sum(1))
            for target in reading:
                size = relative(columns(self.analysis, layer, target, numbers))
                found[target] = found.get(target, 0) + size
        return found

    def _candidates(self, target: Target, made: Array, read: Array | None, seen: Sequence[Vectors]) -> dict[str, Array]:
        """Return orders by what they are, each once; the first is the one that is there."""
        sizes = {"norm": made} | {measure: measured(seen, measure) for measure in MEASURES if seen}
        if read is not None:
            sizes |= {"columns": read, "product": read * sizes.get("rms", made)}
        found, met = {"as it is": target.identity}, {target.identity.tobytes()}
        for name, numbers in sizes.items():
            for arrangement in TRIED:
                order = arranged(numbers, arrangement, self.block)
                if order.tobytes() not in met:
                    met.add(order.tobytes())
                    found[f"{name} {arrangement}"] = order
        return found

    def _judge_layer(self, layer: Layer, second: Array | None, trials: Mapping[Target, Trial]) -> None:
        weight = layer.content()
        for target, trial in trials.items():
            taken = (inputs(self.analysis, layer, target, orders) for orders in trial.orders.values())
            trial.errors += np.fromiter(output_errors(self.fmt, self.block, weight, second, taken), float)

    def _judge_keys(self, target: Target, trial: Trial, seen: Sequence[Vectors], made: Array) -> None:
        """Judge what is kept of keys; without data, noise that is as large as their weights stands in for it."""
        keys = [(np.concatenate(vectors.kept), vectors.places) for vectors in seen if vectors.kept]
        if self.context.calibration.made_up and any(held.keys for held in Holdings(self.analysis).held(target)):
            noise = np.random.default_rng(self.context.seed).standard_normal((GUESSES, *target.shape))
            keys = [(noise * made, lambda orders: orders)]
        for place, orders in enumerate(trial.orders.values()):
            for vectors, places in keys:
                trial.errors[place] += vector_error(self.fmt, self.block, vectors, places(orders))
