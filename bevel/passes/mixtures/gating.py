"""Which experts a row takes, and what they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from scipy.special import expit, softmax

from bevel.passes.experts.writing import Writer

Array = np.ndarray[Any, Any]
Kind: TypeAlias = Literal["one", "chosen", "counted", "softmax", "sigmoid", "sigmoid-share", "router"]

KINDS: Final[tuple[Kind, ...]] = ("one", "chosen", "softmax", "sigmoid", "sigmoid-share")
# Of these, those that say something where rows take different numbers of experts; counted is chosen elsewhere.
COUNTED_KINDS: Final[tuple[Kind, ...]] = ("one", "chosen", "counted", "softmax")


class Weighing(Protocol):
    """Nodes that choose experts and weigh them."""

    def gates(self, logits: Array) -> Array:
        """Return what each expert counts for each row, `[rows, experts]`, of logits as rows."""

    def write(self, write: Writer, logits: ir.Value, kept: Sequence[int] | None) -> ir.Value:
        """Write the same; where experts go, for those `kept`."""

    def penalty(self, kept: Sequence[int]) -> Array:
        """Return what is added to logits so that experts which are not kept count nothing, `[experts]`."""


@dataclass(frozen=True)
class Gating:
    """What an expert that is taken counts, from the logits of all experts.

    one            always the same
    chosen         the softmax over the logits of those that are taken
    counted        the same, times how many are taken
    softmax        the softmax over all logits
    sigmoid        the sigmoid of its logit
    sigmoid-share  the same, divided by the sum over those that are taken
    router         what nodes make of the logits that no other kind says; these choose as well

    All times `scale`. Where experts were merged, `groups` says for each logit which of them it is for; one that several
    logits are for counts the sum. With a `threshold`, a row takes its best experts until the softmax of all logits,
    summed over those, reaches that.
    """

    kind: Kind
    scale: float = 1.0
    groups: tuple[int, ...] | None = None
    threshold: float | None = None
    router: Weighing | None = None

    def total(self, active: int) -> float | None:
        """Return what the gates of a row that takes so many experts add up to; None where rows differ.

        >>> Gating("one", 0.5).total(4), Gating("chosen").total(4), Gating("softmax").total(4)
        (2.0, 1.0, None)
        """
        if self.kind in ("one", "counted"):
            return self.scale * active if self.threshold is None else None
        return self.scale if self.kind in ("chosen", "sigmoid-share") else None

    def each(self, active: int) -> float:
        """Return what an expert that is taken counts on average, where nothing but how many are taken decides that.

        >>> Gating("one", 0.5).each(4), Gating("chosen").each(4), Gating("one", threshold=0.5).each(2)
        (0.5, 0.25, 1.0)
        """
        return self.scale if self.kind in ("one", "counted") else self.scale / active

    def gates(self, logits: Array, active: int) -> Array:
        """Return what each expert counts for each row, zero for those not taken, `[rows, experts]`.

        >>> Gating("chosen").gates(np.array([[0.0, 0.0, -9.0]]), 2).tolist()
        [[0.5, 0.5, 0.0]]
        """
        if self.router is not None:
            return np.asarray(self.scale * self.router.gates(logits) @ self.belongs(logits.shape[1]))
        mask = taken(logits, active, self.threshold)
        if self.kind == "one":
            gates = mask.astype(np.float64)
        elif self.kind in ("chosen", "counted"):
            gates = softmax(np.where(mask, logits.astype(np.float64), -np.inf), axis=1)
            gates = gates * mask.sum(1, keepdims=True) if self.kind == "counted" else gates
        elif self.kind == "softmax":
            gates = softmax(logits.astype(np.float64), axis=1) * mask
        else:
            gates = expit(logits.astype(np.float64)) * mask
        if self.kind == "sigmoid-share":
            gates = gates / np.maximum(gates.sum(1, keepdims=True), 1e-30)
        return np.asarray(self.scale * gates @ self.belongs(gates.shape[1]))

    def belongs(self, logits: int) -> Array:
        """Return which expert each logit is for, `[logits, experts]`, zeros and ones.

        >>> Gating("one", groups=(0, 1, 0)).belongs(3).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        """
        if self.groups is None:
            return np.eye(logits)
        return np.eye(max(self.groups) + 1)[list(self.groups)]


def taken(logits: Array, active: int, threshold: float | None = None) -> Array:
    """Return which experts rows take: those with the largest logits, `[rows, experts]`, up to a threshold if given.

    >>> taken(np.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [[False, True, True]]
    >>> taken(np.array([[1.0, 3.0, 2.0]]), 2, 0.5).tolist()
    [[False, True, False]]
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :active]
    inside = np.ones(best.shape, bool)
    if threshold is not None:
        shares = np.take_along_axis(softmax(logits.astype(np.float64), axis=1), best, axis=1)
        inside = np.cumsum(shares, axis=1) - shares < threshold
    mask = np.zeros(logits.shape, bool)
    np.put_along_axis(mask, best, inside, axis=1)
    return mask
