"""Routers that no closed form says: the nodes from the logits to the experts that rows take, and what those count.

Limits on groups of experts, corrections that count for the choice only, and the like: the nodes stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.passes.base import Runtime
from bevel.passes.experts.writing import Writer
from bevel.passes.mixtures.chains import Unlike, is_float
from bevel.passes.mixtures.description import Mixture
from bevel.passes.mixtures.gates import fitted
from bevel.passes.mixtures.gating import Gating
from bevel.passes.mixtures.probing import Probe, limit_of
from bevel.passes.mixtures.reading import opened
from bevel.passes.mixtures.region import Region

Array = np.ndarray[Any, Any]

# What is added to the logit of an expert that is gone: its sigmoid and its share of a softmax are zero.
GONE: Final = -1e4
FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True, eq=False)
class Router:
    """A part of a graph that gives, of logits of `rank` axes, what experts count and which, `[..., active]` each."""

    model: ir.Model
    rank: int
    experts: int
    active: int
    runtime: Runtime

    def gates(self, logits: Array) -> Array:
        """Return what each expert counts for each row, `[rows, experts]`, of logits as rows."""
        given = logits.astype(np.float32).reshape(*(1,) * (self.rank - 2), *logits.shape)
        names = [value.name or "" for value in self.model.graph.outputs]
        with self.runtime.open(self.model) as runs:
            answers = runs.run({self.model.graph.inputs[0].name or "": given})
        weights, chosen = (np.asarray(answers[name]).reshape(len(logits), -1) for name in names)
        found = np.zeros((len(logits), self.experts))
        np.add.at(found, (np.arange(len(logits))[:, None], chosen), weights)
        return found

    def write(self, write: Writer, logits: ir.Value, kept: Sequence[int] | None) -> ir.Value:
        """Write the same, of logits as rows; where experts go, for those `kept`."""
        if kept is not None:
            logits = write("Add", logits, write.floats("gone", self.penalty(kept)))
        given = logits
        if self.rank > 2:
            shape = write.integers("logits.shape", *(1,) * (self.rank - 2), -1, self.experts)
            given = write("Reshape", logits, shape)
        weights, chosen = write.grafted(self.model.clone(), [given], "router")
        slots = write.integers("slots", -1, self.active)
        places, each = write("Reshape", chosen, slots, dtype=INT), write("Reshape", weights, slots)
        ends = write.constant("mask.values", np.array([0, 1], np.float32))
        mask = write("OneHot", places, write.integers("count", self.experts), ends, axis=-1)
        mask = write("Mul", mask, write("Unsqueeze", each, write.integers("last", 2)))
        found = write("ReduceSum", mask, write.integers("axis", 1), keepdims=0)
        return found if kept is None else write("Gather", found, write.integers("kept", *kept), axis=1)

    def penalty(self, kept: Sequence[int]) -> Array:
        """Return what is added to logits so that experts which are not kept count nothing, `[experts]`."""
        found = np.full(self.experts, GONE, np.float32)
        found[list(kept)] = 0
        return found


def router_of(
    model: ir.Model, region: Region, made: Mixture, probe: Probe, weights: Sequence[ir.Value], runtime: Runtime
) -> Gating:
    """Return gates as a router, or raise `Unlike` if no value of `weights` is what the experts chosen count."""
    named = [value for value in (region.chosen, *weights) if value.name]
    inputs = [region.input, region.logits, *region.others]
    with runtime.open(opened(model, inputs, named)) as runs:
        arrays = [np.asarray(array) for array in runs.run(probe.feed).values()]
    outputs = made.outputs(probe.rows, runtime).astype(np.float64)
    wanted = probe.output.astype(np.float64) - made.always(probe.rows, runtime)
    chosen: Array = arrays[0].reshape(len(probe.rows), -1)
    rows = np.arange(len(chosen))[:, None]
    for value, array in reversed([*zip(named[1:], arrays[1:], strict=True)]):
        if array.shape != arrays[0].shape:
            continue
        gates: Array = np.zeros(probe.logits.shape)
        np.add.at(gates, (rows, chosen), array.reshape(chosen.shape))
        scale, error = fitted(gates @ made.gating.belongs(gates.shape[1]), outputs, wanted, limit_of(made))
        if error <= limit_of(made):
            part = opened(model, [region.logits], [value, region.chosen])
            rank = probe.feed[region.logits.name or ""].ndim
            router = Router(part, rank, probe.logits.shape[1], chosen.shape[1], runtime)
            return replace(made.gating, kind="router", scale=scale, router=router)
    raise Unlike("no value is what its experts count")


def weighing(nodes: Sequence[ir.Node], given: ir.Value, logits: ir.Value, chosen: ir.Value) -> list[ir.Value]:
    """Return the floats that come of the logits, or of which experts are chosen, and not of what experts read."""
    known, rows = {logits, chosen}, {given}
    found: list[ir.Value] = []
    for node in nodes:
        read = [value for value in node.inputs if value is not None]
        if any(value in rows for value in read):
            rows.update(filter(is_float, node.outputs))
        elif any(value in known for value in read):
            known.update(node.outputs)
            found += filter(is_float, node.outputs)
    return found
