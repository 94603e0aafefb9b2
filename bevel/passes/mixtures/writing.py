"""Write dense layers and mixtures of experts into a graph, in standard operators.

A mixture runs each expert under a condition, on the rows for which its gate is not zero, and adds what it gives to
those rows of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.bypass import redirect
from bevel.ir.canonical.dead import clear, is_used, remove_dead, subgraphs
from bevel.ir.canonical.shapes import apply_hints, forget_contents, infer_shapes, take_declared
from bevel.ir.names import Names
from bevel.passes.experts.writing import Writer
from bevel.passes.mixtures.choosing import Routing, gates
from bevel.passes.mixtures.description import Activation, Expert, Mixture
from bevel.passes.mixtures.rows import LAST, from_last, to_last

Array = np.ndarray[Any, Any]

FLOAT, INT, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


class Rewriter(Writer):
    """Writes experts before the node that gives what a mixture gives."""

    def __init__(self, model: ir.Model, mixture: Mixture, names: Names, what: str) -> None:
        maker = mixture.output.producer()
        super().__init__(model.graph, maker, f"{mixture.name}.{what}", names, FLOAT)

    def inside(self, prefix: str) -> Writer:
        """Return what writes a graph of its own, for a branch."""
        graph = ir.Graph([], [], nodes=[], opset_imports=self.graph.opset_imports, name=prefix)
        return Writer(graph, None, prefix, self.names, FLOAT)


def replace(model: ir.Model, mixture: Mixture, names: Names, result: ir.Value) -> None:
    """Let what reads a mixture read something else, and remove the mixture."""
    maker = mixture.output.producer()
    result.shape = mixture.output.shape
    redirect(model.graph, mixture.output, result, names)
    _remove_unused(model.graph, maker)


def _remove_unused(graph: ir.Graph, node: ir.Node | None) -> None:
    """Remove a node and those that only it needed, those of other domains too, which are left alone as dead code."""
    pending = [node]
    while pending:
        each = pending.pop()
        if each is None or each.graph is not graph or any(is_used(value) for value in each.outputs):
            continue
        pending += [value.producer() for value in each.inputs if value is not None]
        for inner in subgraphs(each):
            clear(inner)
        graph.remove(each, safe=True)


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
    result = layer(write, _turned(write, mixture.input, mixture), expert, mixture.activation)
    replace(model, mixture, names, _turned(write, result, mixture, back=True))


def layer(write: Writer, value: ir.Value, expert: Expert, activation: Activation, prefix: str = "") -> ir.Value:
    """Write the layers of one expert, for a value whose last axis has the channels."""
    label = ("up",) if len(expert.ups) == 1 else ("first", "second")
    read = [
        _linear(write, value, f"{prefix}{name}", up, bias)
        for name, up, bias in zip(label, expert.ups, expert.biases, strict=True)
    ]
    hidden = write.graft(activation.model.clone(), read, f"{prefix}activation")
    return _linear(write, hidden, f"{prefix}down", expert.down, expert.constant)


def _linear(write: Writer, value: ir.Value, name: str, weight: Array, bias: Array) -> ir.Value:
    product = write("MatMul", value, write.learnt(name, weight))
    return write("Add", product, write.learnt(f"{name}.bias", bias)) if np.any(bias) else product


def mixed(model: ir.Model, mixture: Mixture, experts: Sequence[Expert], routing: Routing, names: Names) -> None:
    """Put fewer experts in the place of a mixture."""
    write = Rewriter(model, mixture, names, "experts")
    given = _turned(write, mixture.input, mixture)
    rows = _rows(write, given, mixture.channels[0])
    found = gates(write, _rows(write, mixture.logits, routing.logits(mixture)), mixture, routing)
    by_expert = write("Transpose", found, perm=[1, 0])
    total = _always(write, mixture, rows)
    for number, expert in enumerate(experts):
        total = _branch(write, number, expert, mixture.activation, rows, by_expert, total)
    replace(model, mixture, names, _turned(write, _shaped(write, total, given, mixture), mixture, back=True))


def _turned(write: Writer, value: ir.Value, mixture: Mixture, *, back: bool = False) -> ir.Value:
    """Move the channels of a value to the last axis, or back to where the mixture has them."""
    shape = mixture.input.shape
    if mixture.axis == LAST or shape is None:
        return value
    order = (from_last if back else to_last)(len(shape), mixture.axis)
    return write("Transpose", value, perm=order)


def _rows(write: Writer, value: ir.Value, width: int) -> ir.Value:
    if value.shape is not None and len(value.shape) == 2:
        return value
    return write("Reshape", value, write.integers("rows", -1, width))


def _shaped(write: Writer, rows: ir.Value, like: ir.Value, mixture: Mixture) -> ir.Value:
    """Return rows in the shape of what is read, its channels last, but with as many channels as experts give."""
    shape = mixture.output.shape
    if shape is not None and len(shape) == 2:
        return rows
    read, given = mixture.channels
    sizes = write("Shape", like, dtype=INT)
    if read != given:
        rank = 0 if mixture.input.shape is None else len(mixture.input.shape)
        places = write.integers("leading", *range(rank - 1))
        before = write("Gather", sizes, places, dtype=INT, axis=0)
        sizes = write("Concat", before, write.integers("width", given), dtype=INT, axis=0)
    return write("Reshape", rows, sizes)


def _always(write: Writer, mixture: Mixture, rows: ir.Value) -> ir.Value:
    """Write what every row gets, whatever it takes: nothing, unless experts share some entries or a constant."""
    shared = mixture.shared
    if shared is None or not shared.size:
        zeros = _zeros(write, rows, mixture.channels[1])
        return zeros if shared is None else write("Add", zeros, write.learnt("shared.bias", shared.constant))
    result = layer(write, rows, shared, mixture.activation, "shared.")
    result.shape = ir.Shape([None if rows.shape is None else rows.shape[0], mixture.channels[1]])
    return result


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
