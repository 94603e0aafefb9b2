"""A mixture tried on the calibration data, beside its bound and beside plain pruning to the same active width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.passes.base import Runtime
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.fits import choices
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.routing import decide
from bevel.passes.fitting.damping import damping
from bevel.passes.fitting.layers import hold, layers
from bevel.passes.fitting.second_order import Damped
from bevel.passes.fitting.shift import bias_of

Array = np.ndarray[Any, Any]

# Rows of which the chunk-level sparsity takes the union of experts: BlockFFN's CLS8.
CHUNK: Final = 8


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

    `static` is the error of plain pruning to as many entries as are active on average, `kept` and `pruned` what that
    keeps. `oracle` is the error if the best experts ran. They are NaN where they were not asked for.
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
    def width(self) -> float:
        """How many hidden entries run for a row, on average."""
        partition = self.mixture.partition
        return len(partition.shared) + float(self.taken.sum(1).mean()) * len(partition.routed[0])

    @property
    def rest(self) -> float:
        """The share of experts that a row does not take: BlockFFN's token-level sparsity."""
        return float(1 - self.taken.mean())

    @property
    def load(self) -> float:
        """How often the expert most in demand is taken, relative to the mean."""
        shares = self.taken.mean(0)
        return float(shares.max() / max(shares.mean(), 1e-12))

    @property
    def idle(self) -> float:
        """The share of experts that a chunk of rows does not take at all: BlockFFN's chunk-level sparsity."""
        count = len(self.taken) // CHUNK * CHUNK
        if not count:
            return float(1 - self.taken.any(0).mean())
        return float(1 - self.taken[:count].reshape(-1, CHUNK, self.taken.shape[1]).any(1).mean())


def attempt(
    evidence: Evidence, mixture: Mixture, runtime: Runtime, *, refit: bool, control: bool = True, bound: bool = True
) -> Trial:
    """Try a mixture, beside the bound and the control if they are wanted."""
    weights = decide(evidence.parts, mixture, evidence.rows, runtime)
    taken = weights > 0
    refit = refit and evidence.movable
    fitted, error = _measured(evidence, mixture, weights, refit)
    oracle = _bound(evidence, mixture, taken, refit) if bound else np.nan
    width = len(mixture.partition.shared) + round(taken.sum(1).mean() * len(mixture.partition.routed[0]))
    kept, pruned, static = pruning(evidence, width, refit=evidence.movable) if control else _nothing(evidence)
    return Trial(mixture, fitted, taken, error, oracle, static, kept, pruned)


def _nothing(evidence: Evidence) -> tuple[Array, Fitted, float]:
    """Return what stands for a control that was not asked for."""
    return np.arange(0), _plain(evidence), np.nan


def _plain(evidence: Evidence) -> Fitted:
    return Fitted(evidence.down, np.zeros(evidence.layer.channels[1]))


def _bound(evidence: Evidence, mixture: Mixture, taken: Array, refit: bool) -> float:
    """Return the error if each row took as many experts as it does, but the best."""
    best = np.zeros(taken.shape)
    for rows in (evidence.fitted, evidence.held) if refit else (evidence.held,):
        best[rows] = choices(evidence, mixture.partition, taken[rows].sum(1), rows)
    return _measured(evidence, mixture, best, refit)[1]


def _measured(evidence: Evidence, mixture: Mixture, weights: Array, refit: bool) -> tuple[Fitted, float]:
    """Return the last product's weights under a choice of experts, and the error on rows held back."""
    routed, shared = mixture.columns(evidence.layer.size)

    def visible(rows: slice) -> Array:
        return np.asarray(evidence.hidden[rows] * (weights[rows] @ routed + shared).astype(evidence.hidden.dtype))

    fitted = _fit(evidence, visible(evidence.fitted)) if refit else _plain(evidence)
    return fitted, _error(evidence, fitted, visible(evidence.held))


def _error(evidence: Evidence, fitted: Fitted, visible: Array) -> float:
    """Return how far the output is off on the rows held back, of which `visible` are the hidden entries."""
    wanted = evidence.hidden[evidence.held] @ evidence.down
    found = fitted.outputs(visible)
    return float(np.linalg.norm(wanted - found) / max(float(np.linalg.norm(wanted)), 1e-30))


def _fit(evidence: Evidence, visible: Array) -> Fitted:
    """Fit the last product to what it gave, from the hidden entries that are computed now."""
    hidden, down = evidence.hidden[evidence.fitted], evidence.down.astype(np.float64)
    missing = ((hidden - visible) @ evidence.down).astype(np.float64)
    mean = visible.mean(0, dtype=np.float64) * evidence.centre
    second = _moment(visible, visible) - np.outer(mean, mean)
    cross = _moment(visible, missing) - np.outer(mean, missing.mean(0) * evidence.centre)
    correction = Damped(second, damping(second, evidence.apart)).solve(cross)
    shift = (missing.mean(0) - mean @ correction) * evidence.centre
    return Fitted(down + correction, shift)


def _moment(left: Array, right: Array) -> Array:
    return np.asarray(left.T @ right / len(left), np.float64)


def pruning(evidence: Evidence, width: int, *, refit: bool) -> tuple[Array, Fitted, float]:
    """Return which hidden entries to keep for all rows, the weights fitted to them, and the error on rows held back."""
    order = np.argsort(-evidence.losses, kind="stable")
    kept, dropped = np.sort(order[:width]), np.sort(order[width:])
    fitted = _fit_kept(evidence, kept, dropped) if refit else _plain(evidence)
    visible = evidence.hidden[evidence.held].copy()
    visible[:, dropped] = 0
    return kept, fitted, _error(evidence, fitted, visible)


def _fit_kept(evidence: Evidence, kept: Array, dropped: Array) -> Fitted:
    """Fit the last product to some of the entries, the same ones for all rows: the moment of all has all it takes."""
    down, second, mean = evidence.down.astype(np.float64), evidence.second, evidence.mean
    left = second[np.ix_(kept, kept)]
    correction = Damped(left, damping(left, evidence.apart)).solve(second[np.ix_(kept, dropped)] @ down[dropped])
    shift = mean[dropped] @ down[dropped] - mean[kept] @ correction
    down[kept] += correction
    return Fitted(down, shift)


def write(evidence: Evidence, fitted: Fitted, clone: ir.Model | None = None) -> None:
    """Put fitted weights into the model, or into a clone of it."""
    layer = evidence.last
    assert layer is not None
    if clone is not None:
        places = [each.node for each in layers(evidence.parts.model)]
        layer = list(layers(clone))[places.index(layer.node)]
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
