"""Routers from weights and cached activations: forward passes of the model only, also for those that are trained.

They are found by name among the entry points `bevel.routers`. A fit takes the evidence of a layer, its partition, and
how many of the routed experts run for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from scipy.linalg import lstsq
from scipy.optimize import minimize
from scipy.special import expit

from bevel.ir.split import Partition
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.routers import Linear, Neurons, Oracle, Router
from bevel.passes.experts.splitters import manhattan, markers
from bevel.passes.experts.trained import train

Array = np.ndarray[Any, Any]
Fit = Callable[[Evidence, Partition, int], Router]

# Share of the mean energy of the inputs that is added to keep a fit from following noise.
RIDGE: Final = 1e-3
STEPS: Final = 60
# Hidden entries of the network beside a trained router.
WIDTH: Final = 64
# Rows that are worked on at a time where every expert's output is needed.
CHUNK: Final = 512


def analytic(evidence: Evidence, partition: Partition, active: int) -> Router:
    """Score an expert by the magnitude of the entry that stands for it best: nearest to its centre (CMoE)."""
    marked = markers(evidence)
    chosen = [part[manhattan(marked[part], marked[part].mean(0)[None]).argmin()] for part in partition.routed]
    return Neurons(np.array(chosen), evidence.rows[evidence.fitted])


def mean_gate(evidence: Evidence, partition: Partition, active: int) -> Router:
    """Score an expert by the mean of its gates' weights (ExpertWeaver)."""
    weight, bias = evidence.gates
    rows = np.stack([weight[part].mean(0) for part in partition.routed])
    return Linear(rows.T, np.array([bias[part].mean() for part in partition.routed]))


def least_squares(evidence: Evidence, partition: Partition, active: int) -> Router:
    """Fit a linear layer to which experts would be best, as zeros and ones."""
    rows, labels = _examples(evidence, partition, active)
    mean, middle = rows.mean(0), labels.mean(0)
    centred = rows - mean
    ridge = np.sqrt(RIDGE * np.square(centred).sum(0).mean())
    design = np.concatenate([centred, ridge * np.eye(rows.shape[1])])
    target = np.concatenate([labels - middle, np.zeros((rows.shape[1], labels.shape[1]))])
    weight = np.asarray(lstsq(design, target)[0])
    return Linear(weight, middle - mean @ weight)


def logistic(evidence: Evidence, partition: Partition, active: int) -> Router:
    """Fit a logistic regression to which experts would be best."""
    rows, labels = _examples(evidence, partition, active)
    mean, scale = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    design = np.concatenate([(rows - mean) / scale, np.ones((len(rows), 1))], axis=1)
    shape = design.shape[1], labels.shape[1]

    def loss(flat: Array) -> tuple[float, Array]:
        weight = flat.reshape(shape)
        scores = design @ weight
        penalty = RIDGE * weight
        value = (np.logaddexp(0, scores) - labels * scores).sum() / len(rows) + 0.5 * float((penalty * weight).sum())
        return float(value), (design.T @ (expit(scores) - labels) / len(rows) + penalty).ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    weight = found.x.reshape(shape)
    inner = weight[:-1] / scale[:, None]
    return Linear(inner, weight[-1] - mean @ inner)


def trained(evidence: Evidence, partition: Partition, active: int) -> Router:
    """Train a linear layer on the error that its choices make, from the logistic regression on. Needs PyTorch."""
    return _trained(evidence, partition, active, width=0)


def trained_mlp(evidence: Evidence, partition: Partition, active: int) -> Router:
    """Train a linear layer and a small network beside it, as `trained`: 64 hidden entries. Needs PyTorch."""
    return _trained(evidence, partition, active, width=WIDTH)


def _trained(evidence: Evidence, partition: Partition, active: int, width: int) -> Router:
    _, best = _examples(evidence, partition, active)
    start = logistic(evidence, partition, active)
    assert isinstance(start, Linear)
    return train(evidence, partition, start, best, width)


def oracle(evidence: Evidence, partition: Partition, active: int) -> Router:
    """Compute all experts and take the best for the layer's output, as `choices` does: a bound, no router to run."""
    owners = partition.owners(evidence.layer.size)
    return Oracle(evidence.down, (owners == np.arange(len(partition.routed))[:, None]).astype(np.float64))


def _examples(evidence: Evidence, partition: Partition, active: int) -> tuple[Array, Array]:
    """Return rows to fit on, and which experts would be best for each."""
    best = choices(evidence, partition, active, evidence.fitted)
    return evidence.rows[evidence.fitted].astype(np.float64), best.astype(np.float64)


def choices(evidence: Evidence, partition: Partition, active: int | Array, rows: slice) -> Array:
    """Return which experts to run for each row, `[rows, experts]`, so that the output is nearest to that of all.

    Experts are left out one by one, each time the one whose absence costs least beside those that are absent already.
    `active` is how many are to run, for all rows or for each.
    """
    hidden = evidence.hidden[rows]
    counts = np.broadcast_to(active, len(hidden))
    found = [
        _best(_outputs(evidence, partition, hidden[start : start + CHUNK]), counts[start : start + CHUNK])
        for start in range(0, len(hidden), CHUNK)
    ]
    return np.concatenate(found)


def _outputs(evidence: Evidence, partition: Partition, hidden: Array) -> Array:
    """Return what each routed expert gives, `[rows, experts, channels]`."""
    return np.stack([hidden[:, part] @ evidence.down[part] for part in partition.routed], axis=1)


def _best(outputs: Array, counts: Array) -> Array:
    """Return which outputs to keep, so many of each row.

    >>> _best(np.array([[[1.0, 0.0], [0.0, 3.0], [0.1, -1.0]]]), np.array([1])).tolist()
    [[False, True, False]]
    """
    gram = outputs @ outputs.transpose(0, 2, 1)
    alone = np.einsum("rii->ri", gram)
    kept = np.ones(alone.shape, bool)
    for left in range(alone.shape[1], int(counts.min()), -1):
        cost = alone + 2 * np.einsum("rij,rj->ri", gram, ~kept)
        worst = np.where(kept, cost, np.inf).argmin(1)
        going = np.flatnonzero(counts < left)
        kept[going, worst[going]] = False
    return kept
