"""Routers trained by distillation: the whole model is to answer as it did, with every router's choice in it.

A choice of experts has no gradient. In the model that is trained, the mask is what it is, plus the router's shares less
the same rounded off to steps of a millionth: next to nothing, but only the first of the two has a derivative, so that
gradients go straight through to the router.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.feed_forward import feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.names import Names
from bevel.ir.provenance import is_learnt
from bevel.ir.split import Parts
from bevel.passes.base import Context
from bevel.passes.calibration import Feed
from bevel.passes.experts.emission import mask_hidden, writer
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.routers import Linear
from bevel.passes.experts.routing import FLOAT, gates, scored
from bevel.passes.experts.trial import Trial, attempt, write
from bevel.passes.experts.writing import Writer

Array = np.ndarray[Any, Any]

FINE: Final = 2.0**20
"""One over the steps that shares are rounded off to."""
ROWS: Final = 8
STEPS: Final = 300
LR: Final = 3e-3


@dataclass(frozen=True, eq=False)
class _Written:
    """Scores that are in the graph already."""

    value: ir.Value
    size: int = 0

    def scores(self, write: Writer, rows: ir.Value, parts: Parts) -> ir.Value:
        """Return them."""
        return self.value


def train(
    model: ir.Model,
    trials: Sequence[tuple[Evidence, Trial]],
    context: Context,
    *,
    refit: bool,
    steps: int = STEPS,
    lr: float = LR,
) -> list[Trial]:
    """Train the linear routers of mixtures that were tried, all at once, and try the mixtures again.

    The model learns to answer as it did before, from the context's samples; the routers are told which experts would
    be best, too, and to use all alike. Needs PyTorch.

    Source: Zhao et al. 2024, FactorLLM (pseudo-labels); Zheng et al. 2025, Dense2MoE (distillation and balance).
    """
    student = model.clone()
    twins = {layer.name: layer for layer in feed_forwards(analyse(student))[0]}
    names = Names(student)
    routers: list[list[str]] = []
    for found, trial in trials:
        twin = replace(found, parts=Parts(student, twins[found.layer.name]))
        if found.movable:
            write(twin, trial.fitted)
        routers.append(_learning(twin.parts, trial, names))
    arrays = context.runtime.distilled(
        student,
        model,
        list(_cut(context)),
        [name for each in routers for name in each],
        [trial.mixture.active for _, trial in trials],
        steps=steps,
        lr=lr,
        seed=context.seed,
        progress=context.progress,
    )
    return [
        attempt(
            found, replace(trial.mixture, router=Linear(*(arrays[name] for name in each))), context.runtime, refit=refit
        )
        for (found, trial), each in zip(trials, routers, strict=True)
    ]


def _learning(parts: Parts, trial: Trial, names: Names) -> list[str]:
    """Mask a layer so that gradients reach its router, give what the router is judged by, and name what it learns."""
    layer, mixture, write = parts.layer, trial.mixture, writer(parts, names)
    rows = write.flattened(layer.input, layer, layer.channels[0])
    known = set(write.graph.initializers)
    scores = scored(write, rows, parts, mixture)
    learnt = [name for name, value in write.graph.initializers.items() if name not in known and is_learnt(value)]
    given = replace(mixture, router=_Written(scores))
    chosen = write("Transpose", gates(write, rows, parts, given), dtype=FLOAT, perm=[1, 0])
    shares = write("Softmax", scores, dtype=FLOAT, axis=-1)
    mask = write("Add", chosen, _slope(write, shares, mixture.active), dtype=FLOAT)
    mask_hidden(write, parts, mixture, mask)
    for value in (shares, _adds(write, parts, mixture, trial.fitted.down)):
        value.shape = ir.Shape([None, mixture.experts])
        write.graph.outputs.append(value)
    return learnt


def _slope(write: Writer, shares: ir.Value, active: int) -> ir.Value:
    """Write what is nothing, up to 1e-6, and has the derivative of the shares times the number of experts taken."""
    times = write("Mul", shares, write.constant("slope.active", np.array(active, np.float32)), dtype=FLOAT)
    fine = write.constant("slope.fine", np.array(FINE, np.float32))
    steps = write("Floor", write("Mul", times, fine, dtype=FLOAT), dtype=FLOAT)
    return write("Sub", times, write("Div", steps, fine, dtype=FLOAT), dtype=FLOAT)


def _adds(write: Writer, parts: Parts, mixture: Mixture, down: Array) -> ir.Value:
    """Write how much each expert adds to a layer's output along it: `(h * (h D D^T)) S`."""
    layer = parts.layer
    hidden = write.flattened(layer.hidden, layer, layer.size)
    along = write("MatMul", hidden, write.floats("adds.gram", down @ down.T))
    routed = mixture.columns(layer.size)[0] > 0
    return write("MatMul", write("Mul", hidden, along), write.floats("adds.belongs", routed.T))


def _cut(context: Context) -> Iterator[Feed]:
    """Yield the samples in feeds of a few rows, where all inputs have the same number."""
    for feed in context.calibration.samples(context.samples):
        lengths = {len(array) for array in feed.values()}
        most = lengths.pop() if len(lengths) == 1 else 0
        for start in range(0, most, ROWS):
            yield {name: array[start : start + ROWS] for name, array in feed.items()}
        if not most:
            yield feed
