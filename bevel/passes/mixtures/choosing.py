"""Which experts there are to be in a mixture, and what each of them counts, as numbers and as nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.passes.experts.writing import Writer
from bevel.passes.mixtures.description import Mixture

Array = np.ndarray[Any, Any]

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True, eq=False)
class Routing:
    """Which experts there are to be: each the sum of the gates of some of those that were, or one that was kept.

    `kept` are experts from which rows choose as before, all of them if None. `groups` `[experts, fewer]` adds gates up.
    """

    active: int
    kept: Array | None = None
    groups: Array | None = None

    def logits(self, mixture: Mixture) -> int:
        """Return how many logits there are: as many as there were experts before any were merged."""
        return len(mixture.gating.groups or mixture.experts)

    def belongs(self, mixture: Mixture) -> Array | None:
        """Return which expert that is to be each logit is for, None if there is one for each."""
        if mixture.gating.groups is None:
            return self.groups
        before = mixture.gating.belongs(len(mixture.gating.groups))
        return before if self.groups is None else np.asarray(before @ self.groups)

    def gates(self, mixture: Mixture, logits: Array) -> Array:
        """Return what each expert counts for each row, `[rows, fewer]`."""
        if self.kept is None:
            found = mixture.gating.gates(logits, self.active)
        else:
            found = _kept(mixture, logits, self.kept, self.active)[:, self.kept]
        return found if self.groups is None else np.asarray(found @ self.groups)


def _kept(mixture: Mixture, logits: Array, kept: Array, active: int) -> Array:
    """Return gates where some experts are not there to choose; a softmax over all is still one over all."""
    gating = mixture.gating
    if gating.router is not None:
        return gating.gates(logits + gating.router.penalty(kept.tolist()), active)
    hidden = np.full(logits.shape, -np.inf)
    hidden[:, kept] = logits[:, kept]
    if gating.kind != "softmax" or gating.threshold is not None:
        return gating.gates(hidden, active)
    shares = gating.gates(logits, logits.shape[1])
    return np.asarray(shares * (type(gating)("one").gates(hidden, active) > 0))


def gates(write: Writer, scores: ir.Value, mixture: Mixture, routing: Routing) -> ir.Value:
    """Write what each expert counts for each row, `[rows, experts]`, zero for those not taken; of logits as rows."""
    found = _routed(write, scores, mixture, routing)
    scale, groups = mixture.gating.scale, routing.belongs(mixture)
    if groups is not None:
        return write("MatMul", found, write.floats("groups", scale * groups))
    return found if scale == 1.0 else write("Mul", found, write.floats("scale", np.array(scale)))


def _routed(write: Writer, scores: ir.Value, mixture: Mixture, routing: Routing) -> ir.Value:
    """Write the same before experts are put together."""
    kept = None if routing.kept is None else routing.kept.tolist()
    if mixture.gating.router is not None:
        return mixture.gating.router.write(write, scores, kept)
    kind, threshold = mixture.gating.kind, mixture.gating.threshold
    if kind.startswith("sigmoid"):
        scores = write("Sigmoid", scores)
    if kind == "softmax" and threshold is None:
        scores = write("Softmax", scores, axis=-1)
    if kept is not None:
        scores = write("Gather", scores, write.integers("kept", *kept), axis=1)
    if threshold is not None:
        scores = write("Softmax", scores, axis=-1)
    best, chosen = write.several("TopK", [scores, write.integers("active", routing.active)], [FLOAT, INT], axis=-1)
    inside = None if threshold is None else _inside(write, best, threshold)
    count = routing.logits(mixture) if kept is None else len(kept)
    ends = write.constant("mask.values", np.array([0, 1], np.float32))
    mask = write("OneHot", chosen, write.integers("count", count), ends, axis=-1)
    weights = _weights(write, best, inside, kind)
    if weights is not None:
        mask = write("Mul", mask, write("Unsqueeze", weights, write.integers("last", 2)))
    return write("ReduceSum", mask, write.integers("axis", 1), keepdims=0)


def _inside(write: Writer, best: ir.Value, threshold: float) -> ir.Value:
    """Write ones for those of the best before which the sum is below the threshold, `[rows, active]`."""
    before = write("CumSum", best, write.constant("along", np.array(1)), exclusive=1)
    limit = write.floats("threshold", np.array(threshold))
    return write("Cast", write("Less", before, limit, dtype=ir.DataType.BOOL), to=FLOAT.value)


def _weights(write: Writer, best: ir.Value, inside: ir.Value | None, kind: str) -> ir.Value | None:
    """Write what those that are taken count, `[rows, active]`, None where that is one."""
    axis = write.integers("axis", 1)
    if inside is None:
        if kind == "chosen":
            return write("Softmax", best, axis=-1)
        if kind == "sigmoid-share":
            return write("Div", best, write("ReduceSum", best, axis, keepdims=1))
        return None if kind == "one" else best
    if kind == "one":
        return inside
    best = write("Mul", best, inside)
    if kind == "softmax":
        return best
    shares = write("Div", best, write("ReduceSum", best, axis, keepdims=1))
    return shares if kind == "chosen" else write("Mul", shares, write("ReduceSum", inside, axis, keepdims=1))
