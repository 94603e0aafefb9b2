"""Write dense layers and mixtures of experts into a graph, in standard operators.

A mixture runs each expert under a condition, on the rows for which its gate is not zero, and adds what it gives to
those rows of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.bypass import redirect
from bevel.ir.canonical.dead import is_used, remove_dead
from bevel.ir.canonical.shapes import apply_hints, forget_contents, infer_shapes, take_declared
from bevel.ir.names import Names
from bevel.passes.experts.writing import Writer
from bevel.passes.mixtures.description import Activation, Expert, Mixture

Array = np.ndarray[Any, Any]

LEAST_OPSET: Final = 13  # where ReduceSum takes axes as an input
FLOAT, INT, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


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
            hidden = np.full(logits.shape, -np.inf)
            hidden[:, self.kept] = logits[:, self.kept]
            found = _kept(mixture, logits, hidden, self.active)[:, self.kept]
        return found if self.groups is None else np.asarray(found @ self.groups)


def _kept(mixture: Mixture, logits: Array, hidden: Array, active: int) -> Array:
    """Return gates where some experts are not there to choose; a softmax over all is still one over all."""
    gating = mixture.gating
    if gating.kind != "softmax":
        return gating.gates(hidden, active)
    shares = gating.gates(logits, logits.shape[1])
    return np.asarray(shares * (type(gating)("one").gates(hidden, active) > 0))


class Rewriter(Writer):
    """Writes experts before the node that gives what a mixture gives."""

    def __init__(self, model: ir.Model, mixture: Mixture, names: Names, what: str) -> None:
        maker = mixture.output.producer()
        super().__init__(model.graph, maker, f"{mixture.name}.{what}", names, FLOAT)

    def inside(self, prefix: str) -> Writer:
        """Return what writes a graph of its own, for a branch."""
        graph = ir.Graph([], [], nodes=[], opset_imports=self.graph.opset_imports, name=prefix)
        return Writer(graph, None, prefix, self.names, FLOAT)


def require(model: ir.Model) -> None:
    """Raise `EditRefused` where the model's opset is too old to write experts in."""
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise EditRefused(
            f"experts take operators of opset {LEAST_OPSET}; the model has {opset}",
            remedy="export it with a newer opset, or convert it (onnx.version_converter)",
        )


def replace(model: ir.Model, mixture: Mixture, names: Names, result: ir.Value) -> None:
    """Let what reads a mixture read something else, and remove the mixture."""
    maker = mixture.output.producer()
    result.shape = mixture.output.shape
    redirect(model.graph, mixture.output, result, names)
    if maker is not None and maker.domain and not any(is_used(value) for value in maker.outputs):
        model.graph.remove(maker, safe=True)  # an operator of its own domain, which is left alone as dead code


def finish(model: ir.Model) -> None:
    """Remove what nothing uses any more, and say which shapes there are."""
    remove_dead(model)
    hints = take_declared(model)
    infer_shapes(model)
    forget_contents(model)
    apply_hints(hints)


def dense(model: ir.Model, mixture: Mixture, expert: Expert, names: Names) -> None:
    """Put one dense layer in the place of a mixture."""
    write = Rewriter(model, mixture, names, "dense")
    replace(model, mixture, names, layer(write, mixture.input, expert, mixture.activation))


def layer(write: Writer, value: ir.Value, expert: Expert, activation: Activation) -> ir.Value:
    """Write the layers of one expert, for a value whose last axis has the channels."""
    label = ("up",) if len(expert.ups) == 1 else ("first", "second")
    read = [
        _linear(write, value, name, up, bias)
        for name, up, bias in zip(label, expert.ups, expert.biases, strict=True)
    ]  # fmt: skip
    hidden = write.graft(activation.model.clone(), read, "activation")
    return _linear(write, hidden, "down", expert.down, expert.constant)


def _linear(write: Writer, value: ir.Value, name: str, weight: Array, bias: Array) -> ir.Value:
    product = write("MatMul", value, write.learnt(name, weight))
    return write("Add", product, write.learnt(f"{name}.bias", bias)) if np.any(bias) else product


def mixed(model: ir.Model, mixture: Mixture, experts: Sequence[Expert], routing: Routing, names: Names) -> None:
    """Put fewer experts in the place of a mixture."""
    write = Rewriter(model, mixture, names, "experts")
    rows = _rows(write, mixture.input, mixture.channels[0])
    gates = _gates(write, mixture, routing)
    by_expert = write("Transpose", gates, perm=[1, 0])
    total = _zeros(write, rows, mixture.channels[1])
    for number, expert in enumerate(experts):
        total = _branch(write, number, expert, mixture.activation, rows, by_expert, total)
    replace(model, mixture, names, _shaped(write, total, mixture))


def _rows(write: Writer, value: ir.Value, width: int) -> ir.Value:
    if value.shape is not None and len(value.shape) == 2:
        return value
    return write("Reshape", value, write.integers("rows", -1, width))


def _shaped(write: Writer, rows: ir.Value, mixture: Mixture) -> ir.Value:
    """Return rows in the shape of what is read: both have as many channels."""
    if mixture.output.shape is not None and len(mixture.output.shape) == 2:
        return rows
    return write("Reshape", rows, write("Shape", mixture.input, dtype=INT))


def _gates(write: Writer, mixture: Mixture, routing: Routing) -> ir.Value:
    """Write what each expert counts for each row, `[rows, experts]`, zero for those not taken."""
    count = routing.logits(mixture)
    scores = _rows(write, mixture.logits, count)
    kind = mixture.gating.kind
    if kind == "softmax":
        scores = write("Softmax", scores, axis=-1)
    elif kind.startswith("sigmoid"):
        scores = write("Sigmoid", scores)
    if routing.kept is not None:
        scores = write("Gather", scores, write.integers("kept", *routing.kept.tolist()), axis=1)
        count = len(routing.kept)
    best, chosen = write.several("TopK", [scores, write.integers("active", routing.active)], [FLOAT, INT], axis=-1)
    if kind == "chosen":
        best = write("Softmax", best, axis=-1)
    elif kind == "sigmoid-share":
        best = write("Div", best, write("ReduceSum", best, write.integers("axis", 1), keepdims=1))
    values = write.constant("mask.values", np.array([0, 1], np.float32))
    mask = write("OneHot", chosen, write.integers("count", count), values, axis=-1)
    if kind != "one":
        mask = write("Mul", mask, write("Unsqueeze", best, write.integers("last", 2)))
    gates = write("ReduceSum", mask, write.integers("axis", 1), keepdims=0)
    groups = routing.belongs(mixture)
    if groups is not None:
        return write("MatMul", gates, write.floats("groups", mixture.gating.scale * groups))
    return (
        gates
        if mixture.gating.scale == 1.0
        else write("Mul", gates, write.floats("scale", np.array(mixture.gating.scale)))
    )


def _zeros(write: Writer, rows: ir.Value, width: int) -> ir.Value:
    """Write zeros for each row."""
    count = write("Gather", write("Shape", rows, dtype=INT), write.integers("first", 0), dtype=INT, axis=0)
    shape = write("Concat", count, write.integers("width", width), dtype=INT, axis=0)
    zeros = write("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, np.float32)))
    zeros.shape = ir.Shape([None if rows.shape is None else rows.shape[0], width])
    return zeros


def _branch(
    write: Rewriter,
    number: int,
    expert: Expert,
    activation: Activation,
    rows: ir.Value,
    by_expert: ir.Value,
    total: ir.Value,
) -> ir.Value:
    """Write one expert, which adds what it gives to the rows whose gate is not zero."""
    place = write.constant("number", np.array(number))
    mine = write("Gather", by_expert, place, axis=0)
    mine.shape = ir.Shape([None])
    weight = write("ReduceSum", mine, write.integers("axis", 0), keepdims=0)
    asked = write("Cast", weight, dtype=BOOL, to=BOOL.value)
    prefix = f"{write.prefix}.{number}"
    inside = write.inside(prefix)
    places = inside("Reshape", inside("NonZero", mine, dtype=INT), inside.integers("flat", -1), dtype=INT)
    given = inside("Gather", rows, places, axis=0)
    given.shape = ir.Shape([None, expert.ups[0].shape[0]])
    output = layer(inside, given, expert, activation)
    column = inside.integers("column", 1)
    gate = inside("Unsqueeze", inside("Gather", mine, places, axis=0), column)
    added = inside("Add", inside("Gather", total, places, axis=0), inside("Mul", output, gate))
    result = inside("ScatterND", total, inside("Unsqueeze", places, column, dtype=INT), added)
    outside = write.inside(f"{prefix}.none")
    for branch, value in ((inside, result), (outside, outside("Identity", total))):
        value.shape = total.shape
        branch.graph.outputs.append(value)
    done = write("If", asked, then_branch=inside.graph, else_branch=outside.graph)
    done.shape = total.shape
    return done
