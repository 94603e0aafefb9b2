"""Routers trained in PyTorch on what a layer's experts were seen to give: on the error that their choices make."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from bevel.ir.split import Partition
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.routers import Linear, Perceptron, Router

Array = np.ndarray[Any, Any]

EPOCHS: Final = 20
# Rows that are worked on at a time where every expert's output is needed.
CHUNK: Final = 512


def train(evidence: Evidence, partition: Partition, start: Linear, best: Array, width: int) -> Router:
    """Return a router that was trained from a linear one on; `width` hidden entries are added to it, or none.

    `best` `[rows, experts]` are ones for the experts to take. What is trained on are the rows to fit on. Needs PyTorch.

    Source: Zhao et al. 2024, FactorLLM (pseudo-labels); Zheng et al. 2025, Dense2MoE (the layer's output as teacher,
    and balance); the draw among exchanged experts is ours.
    """
    rows = evidence.rows[evidence.fitted].astype(np.float64)
    mean, scale = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    gram = _gram(evidence, partition)
    arrays = evidence.runtime.router(
        (rows - mean) / scale,
        gram,
        gram.sum(2),
        best,
        (start.weight * scale[:, None], start.bias + mean @ start.weight),
        width=width,
        epochs=EPOCHS,
        seed=0,
    )
    linear = _unscaled(arrays[0], arrays[1], mean, scale)
    return Perceptron(linear, _unscaled(arrays[2], arrays[3], mean, scale), arrays[4]) if width else linear


def _unscaled(weight: Array, bias: Array, mean: Array, scale: Array) -> Linear:
    """Return a linear layer of normalized rows as one of the rows themselves."""
    inner = weight / scale[:, None]
    return Linear(inner, bias - mean @ inner)


def _gram(evidence: Evidence, partition: Partition) -> Array:
    """Return inner products of what the experts give for a row, relative to the whole output, `[rows, e, e]`."""
    hidden, down = evidence.hidden[evidence.fitted], evidence.down
    energy = np.square(hidden @ down, dtype=np.float64).sum(1).mean()
    found = []
    for start in range(0, len(hidden), CHUNK):
        part = hidden[start : start + CHUNK]
        outputs = np.stack([part[:, entries] @ down[entries] for entries in partition.routed], axis=1)
        found.append(outputs @ outputs.transpose(0, 2, 1))
    return np.asarray(np.concatenate(found) / max(energy, 1e-30))
