"""What a feed-forward layer becomes: who is in which expert, what scores them, how many run, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.feed_forward import FeedForward
from bevel.ir.split import Partition
from bevel.passes.experts.routers import Router

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A feed-forward layer as experts: of those routed, `active` run for each row; what they give is times `gain`.

    With a `threshold`, a row takes its best experts until the softmax of its scores, summed over those, reaches that;
    never more than `active`. If `soft`, what an expert gives is weighted by the softmax of the scores of those taken,
    times their number: one on average, so that equal scores give what the layer gave.
    """

    partition: Partition
    router: Router
    active: int
    gain: float = 1.0
    threshold: float | None = None
    soft: bool = False

    @property
    def experts(self) -> int:
        """How many experts are routed."""
        return len(self.partition.routed)

    @property
    def width(self) -> int:
        """How many hidden entries run for a row, at most."""
        return len(self.partition.shared) + self.active * len(self.partition.routed[0])

    def columns(self, size: int) -> tuple[Array, Array]:
        """Return which entries each routed expert has, `[experts, entries]`, times the gain, and which are shared."""
        owners = self.partition.owners(size)
        return self.gain * (owners == np.arange(self.experts)[:, None]), (owners < 0).astype(np.float64)


def require_fixed(layer: FeedForward, mixture: Mixture, what: str) -> None:
    """Raise `EditRefused` where rows take different numbers of experts, which an operator cannot."""
    if mixture.threshold is not None:
        raise EditRefused(
            f"{what} runs as many experts for every row",
            where=f"group {layer.name!r}",
            remedy="a threshold takes emit=blocks, dynamic or gather",
        )


def dtype_of(layer: FeedForward) -> ir.DataType:
    """Return the type a layer computes in."""
    return layer.input.dtype or ir.DataType.FLOAT
