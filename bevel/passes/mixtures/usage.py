"""What mixtures read on the calibration data, and how much each expert counts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.piece import piece
from bevel.passes.base import Context
from bevel.passes.mixtures.description import Mixture
from bevel.passes.mixtures.rows import LAST, rows_of

Array = np.ndarray[Any, Any]

MOST_ROWS: Final = 4096
"""More rows hardly change how often experts are taken, but fill the memory."""
MOST_RUN: Final = 512
"""Rows that all experts are run on: what they give takes as many times the memory as there are experts."""


@dataclass(frozen=True, eq=False)
class Usage:
    """Rows `[rows, channels]` and logits `[rows, experts]` that a mixture reads on the calibration data."""

    mixture: Mixture
    rows: Array
    logits: Array

    def some(self) -> Usage:
        """Return the same with fewer rows, from all over the data."""
        step = -(-len(self.rows) // MOST_RUN)
        return Usage(self.mixture, self.rows[::step], self.logits[::step])

    @property
    def gates(self) -> Array:
        """What each expert counts for each row, `[rows, experts]`."""
        return self.mixture.gating.gates(self.logits, self.mixture.active)

    @property
    def counts(self) -> Array:
        """How many rows take each expert, `[experts]`."""
        return np.asarray((self.gates > 0).sum(0))

    @property
    def shares(self) -> Array:
        """How often each expert is taken, as shares that add up to one; equal ones if there are no rows."""
        counts = self.counts.astype(np.float64)
        total = counts.sum()
        return np.asarray(counts / total if total else np.full(len(counts), 1 / len(counts)))

    @property
    def total(self) -> float:
        """What the gates of a row add up to, on average."""
        return float(self.gates.sum(1).mean())


def usages(model: ir.Model, mixtures: Sequence[Mixture], context: Context) -> list[Usage]:
    """Return what mixtures read over the context's samples."""
    axes = {value: axis for each in mixtures for value, axis in ((each.input, each.axis), (each.logits, LAST))}
    wanted = list(axes)
    made = [value for value in wanted if not value.is_graph_input()]
    rows: dict[ir.Value, list[Array]] = {value: [] for value in wanted}
    with context.runtime.open(piece(model, list(model.graph.inputs), made)) as runs:
        for feed in context.calibration.samples(context.samples):
            answers = {**feed, **runs.run(feed)}
            for value, parts in rows.items():
                parts.append(rows_of(np.asarray(answers[value.name or ""]), axes[value]))
            if all(sum(map(len, parts)) >= MOST_ROWS for parts in rows.values()):
                break
    whole = {value: np.concatenate(parts)[:MOST_ROWS] for value, parts in rows.items()}
    return [Usage(each, whole[each.input], whole[each.logits]) for each in mixtures]
