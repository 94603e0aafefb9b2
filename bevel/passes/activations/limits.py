"""Which layers stay in floats, so that the model's error stays below a limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from bevel.passes.base import Context
from bevel.passes.outputs import COMPARED, VERIFIED, Outputs


@dataclass(frozen=True)
class Trial:
    """Quantizes some layers of a clone, by their numbers, and says how far its outputs are off."""

    model: ir.Model
    context: Context
    write: Callable[[ir.Model, Sequence[int]], None]

    @cached_property
    def _outputs(self) -> Outputs:
        return Outputs(self.model, self.context)

    def error(self, numbers: Sequence[int], feeds: int = VERIFIED) -> float:
        """Return the largest relative error of an output over some feeds."""
        return self._outputs.error(lambda clone: self.write(clone, numbers), feeds)


@dataclass(frozen=True)
class Chosen:
    """The layers that are quantized, those that are not, the worst first, and the error before and after."""

    kept: list[int]
    dropped: list[int]
    before: float
    after: float


def within(trial: Trial, numbers: Sequence[int], limit: float) -> Chosen:
    """Leave those layers in floats that do most to the outputs alone, as few as it takes.

    The layers are compared one by one on a few feeds; then the number to leave out is bisected.
    """
    before = trial.error(numbers)
    if before <= limit:
        return Chosen(list(numbers), [], before, before)
    alone = {}
    for done, number in enumerate(numbers):
        trial.context.progress("sensitivity", done, len(numbers))
        alone[number] = trial.error([number], COMPARED)
    order = sorted(numbers, key=lambda number: -alone[number])
    errors = {len(order): 0.0}
    low, high = 0, len(order)  # `low` left out are too few, `high` are enough
    while high - low > 1:
        middle = (low + high) // 2
        errors[middle] = trial.error(sorted(order[middle:]))
        low, high = (low, middle) if errors[middle] <= limit else (middle, high)
    return Chosen(sorted(order[high:]), order[:high], before, errors[high])
