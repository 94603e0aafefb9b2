"""How far the outputs of a changed model are off, measured before it is decided what to change."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import inf
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.passes.base import Context, Runtime
from bevel.passes.calibration import Feed

# As many feeds as the pipeline verifies a pass with, so that what holds here holds there.
VERIFIED: Final = 64
# So many are enough to compare changes with each other.
COMPARED: Final = 4


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model on the calibration inputs."""

    model: ir.Model
    context: Context

    @cached_property
    def _expected(self) -> list[Mapping[str, Any]]:
        return _answers(self.model, self._feeds(VERIFIED), self.context.runtime)

    def error(self, change: Callable[[ir.Model], object], feeds: int = VERIFIED) -> float:
        """Return the largest relative error of an output, over some feeds, once a clone was changed."""
        clone = self.model.clone()
        change(clone)
        return _error(self._expected[:feeds], _answers(clone, self._feeds(feeds), self.context.runtime))

    def _feeds(self, count: int) -> Iterable[Feed]:
        return islice(self.context.calibration, count)


def _answers(model: ir.Model, feeds: Iterable[Feed], runtime: Runtime) -> list[Mapping[str, Any]]:
    """Return what a model answers."""
    with runtime.open(model) as runs:
        return [runs.run(feed) for feed in feeds]


def _error(expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest error of an output, relative to its largest element over all feeds, as verification does."""
    worst = 0.0
    for name in expected[0] if expected else ():
        pairs = [(answer[name], other[name]) for answer, other in zip(expected, got, strict=True)]
        worst = max(worst, _relative(pairs))
    return worst


def _relative(pairs: Sequence[tuple[Any, Any]]) -> float:
    largest = difference = 0.0
    for expected, got in pairs:
        if not isinstance(expected, np.ndarray) or expected.dtype.kind not in "fiub" or expected.shape != got.shape:
            same = isinstance(expected, np.ndarray) and np.array_equal(expected, got)
            difference = difference if same or expected is None else inf
            continue
        wide, other = expected.astype(np.float64), got.astype(np.float64)
        largest = max(largest, float(np.abs(wide).max(initial=0)))
        difference = max(difference, float(np.abs(wide - other).max(initial=0)))
    if not difference:
        return 0.0
    return difference / largest if largest else inf
