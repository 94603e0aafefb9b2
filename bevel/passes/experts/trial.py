"""A mixture tried on the calibration data, beside its bound and beside plain pruning to the same active width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.passes.base import Runtime
from bevel.passes.experts.emission import Mixture, decide
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.fits import choices
from bevel.passes.fitting.layers import Layer, hold, layers
from bevel.passes.fitting.second_order import Damped, SecondOrder
from bevel.passes.fitting.shift import bias_of

Array = np.ndarray[Any, Any]

# Rows of which the chunk-level sparsity takes the union of experts: BlockFFN's CLS8.
CHUNK: Final = 8
# How far the last product's weights, read from the graph, may be from what it was seen to compute.
SAME: Final = 1e-4


@dataclass(frozen=True, eq=False)
class Fitted:
    """Weights `[entries, channels]` of the last product, and what its constant becomes more by."""

    down: Array
    shift: Array

    def outputs(self, hidden: Array) -> Array:
        """Return what they give, without the constant that was there before."""
        return hidden @ self.down + self.shift


@dataclass(frozen=True, eq=False)
class Trial:
    """One layer as a mixture: its weights, its choices, and relative errors of the output on rows held back.

    `static` is the error of plain pruning to as many entries as are active, `kept` and `pruned` what that keeps.
    `oracle` is the error if the best experts ran.
    """

    mixture: Mixture
    fitted: Fitted
    taken: Array
    error: float
    oracle: float
    static: float
    kept: Array
    pruned: Fitted

    @property
    def static_wins(self) -> bool:
        """Whether plain pruning is at least as good."""
        return self.static <= self.error

    @property
    def load(self) -> float:
        """How often the expert most in demand is taken, relative to the mean."""
        shares = self.taken.mean(0)
        return float(shares.max() / max(shares.mean(), 1e-12))

    @property
    def idle(self) -> float:
        """The share of experts that a chunk of rows does not take at all."""
        count = len(self.taken) // CHUNK * CHUNK
        if not count:
            return float(1 - self.taken.any(0).mean())
        return float(1 - self.taken[:count].reshape(-1, CHUNK, self.taken.shape[1]).any(1).mean())


def attempt(evidence: Evidence, mixture: Mixture, runtime: Runtime, *, refit: bool) -> Trial:
    """Try a mixture."""
    taken = decide(evidence.parts, mixture, evidence.rows, runtime)
    best = np.zeros_like(taken)
    for rows in (evidence.fitted, evidence.held):
        best[rows] = choices(evidence, mixture.partition, mixture.active, rows)
    movable = can_refit(evidence)
    fitted, error = _measured(evidence, mixture, taken, refit and movable)
    _, bound = _measured(evidence, mixture, best, refit and movable)
    width = len(mixture.partition.shared) + mixture.active * len(mixture.partition.routed[0])
    kept, pruned, static = pruning(evidence, width, refit=movable)
    return Trial(mixture, fitted, taken, error, bound, static, kept, pruned)


def _measured(evidence: Evidence, mixture: Mixture, taken: Array, refit: bool) -> tuple[Fitted, float]:
    """Return the last product's weights under a choice of experts, and the error on rows held back."""
    routed, shared = mixture.columns(evidence.layer.size)
    mask = (taken @ routed + shared).astype(evidence.hidden.dtype)
    visible = evidence.hidden * mask
    plain = Fitted(evidence.down, np.zeros(evidence.layer.channels[1]))
    fitted = _fit(evidence, visible[evidence.fitted]) if refit else plain
    return fitted, _error(evidence, fitted, visible)


def _error(evidence: Evidence, fitted: Fitted, visible: Array) -> float:
    wanted = evidence.hidden[evidence.held] @ evidence.down
    found = fitted.outputs(visible[evidence.held])
    return float(np.linalg.norm(wanted - found) / max(float(np.linalg.norm(wanted)), 1e-30))


def _fit(evidence: Evidence, visible: Array) -> Fitted:
    """Fit the last product to what it gave, from the hidden entries that are computed now."""
    hidden, down = evidence.hidden[evidence.fitted], evidence.down.astype(np.float64)
    missing = ((hidden - visible) @ evidence.down).astype(np.float64)
    centre = _centre(evidence, visible)
    mean = visible.mean(0, dtype=np.float64) * centre
    second = _moment(visible, visible) - np.outer(mean, mean)
    cross = _moment(visible, missing) - np.outer(mean, missing.mean(0) * centre)
    correction = Damped(second).solve(cross)
    shift = (missing.mean(0) - mean @ correction) * centre
    return Fitted(down + correction, shift)


def _centre(evidence: Evidence, visible: Array) -> float:
    """Return 1 if there is a constant that can take the mean over, else 0."""
    layer = last(evidence)
    return float(layer is not None and bias_of(layer) is not None)


def _moment(left: Array, right: Array) -> Array:
    return np.asarray(left.T @ right / len(left), np.float64)


def pruning(evidence: Evidence, width: int, *, refit: bool) -> tuple[Array, Fitted, float]:
    """Return which hidden entries to keep for all rows, the weights fitted to them, and the error on rows held back."""
    hidden = evidence.hidden[evidence.fitted]
    mean = hidden.mean(0, dtype=np.float64) * _centre(evidence, hidden)
    second = _moment(hidden, hidden) - np.outer(mean, mean)
    scores = SecondOrder(second).scores(evidence.down.T.astype(np.float64), np.arange(len(second))[:, None])
    kept = np.sort(np.argsort(-scores, kind="stable")[:width])
    mask = np.zeros(len(second), hidden.dtype)
    mask[kept] = 1
    visible = evidence.hidden * mask
    plain = Fitted(evidence.down, np.zeros(evidence.layer.channels[1]))
    fitted = _fit(evidence, visible[evidence.fitted]) if refit else plain
    return kept, fitted, _error(evidence, fitted, visible)


def last(evidence: Evidence) -> Layer | None:
    """Return the last product as a layer whose weights can be written, None where it is none."""
    node = evidence.layer.down
    return next((layer for layer in layers(evidence.parts.model) if layer.node is node), None)


def can_refit(evidence: Evidence) -> bool:
    """Say whether the last product's weights are what it multiplies by, so that new ones can be put there."""
    layer = last(evidence)
    if layer is None:
        return False
    content = layer.content()
    if content.shape != (1, *evidence.down.T.shape):
        return False
    return bool(np.abs(content[0].T - evidence.down).max() <= SAME * np.abs(evidence.down).max())


def write(evidence: Evidence, fitted: Fitted) -> None:
    """Put fitted weights into the model."""
    layer = last(evidence)
    assert layer is not None
    bias, weight = bias_of(layer), layer.weight
    assert weight.const_value is not None
    hold(weight, layer.array(fitted.down.T[None]))
    if bias is not None and bias.const_value is not None:
        hold(bias, bias.const_value.numpy() + fitted.shift)


def sharing(variations: Array, experts: int, most: int) -> int:
    """Return how many experts to share, by how much the entries' activations vary from sample to sample (ExpertWeaver).

    The more entries vary by more than 0.6, the fewer are shared: from 70% down to 20% of the experts.

    >>> sharing(np.array([0.1, 0.2, 0.9, 0.3]), 8, 6), sharing(np.ones(4), 8, 6)
    (5, 2)
    """
    share = 0.7 - (0.7 - 0.2) * float((variations > 0.6).mean())
    return min(round(share * experts), most)
