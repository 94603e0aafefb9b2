"""Weights of the experts that some row takes, gathered into one layer: for single rows.

    stacked [.., experts, entries, ..]   each weight, cut where its hidden entries are
    Gather, Reshape                      the entries of the experts taken, one expert after the other
    the layer                            of that width, for all rows; what a row did not take is multiplied by zero

It is right for any number of rows. It copies weights, so it pays only where few rows take few experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.bypass import redirect
from bevel.ir.feed_forward import FeedForward, feed_forwards
from bevel.ir.groups import Member, analyse
from bevel.ir.names import Names
from bevel.ir.piece import graft
from bevel.ir.provenance import is_learnt, mark_learnt
from bevel.ir.split import Parts
from bevel.passes.experts.emission import always, writer
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.routing import FLOAT, INT, routes
from bevel.passes.experts.writing import Writer, loosen

Array = np.ndarray[Any, Any]


def gather(parts: Parts, mixture: Mixture, names: Names) -> None:
    """Gather the weights of the experts that rows take, and run the layer with those."""
    layer, write = parts.layer, writer(parts, names)
    rows = write.flattened(layer.input, layer, layer.channels[0])
    found = routes(write, rows, parts, mixture)
    weights = found.weights
    total = write("ReduceSum", found.taken, write.integers("rows.axis", 1), dtype=FLOAT, keepdims=0)
    taken = write("Reshape", write("NonZero", total, dtype=INT), write.integers("flat", -1), dtype=INT)
    given = {layer.input: layer.input, taken: taken, weights: weights}
    model = _gathered(parts, mixture, {value: ir.Value(name=value.name, type=value.type) for value in (taken, weights)})
    sources = {value.name or "": value for value in given}
    (result,) = graft(model, write.graph, sources, f"{write.prefix}.layer", names, layer.down)
    if mixture.gain != 1.0:
        result = write("Mul", result, write.floats("gain", np.array(mixture.gain)))
    result = always(write, parts, mixture, result)
    result.shape = layer.output.shape
    redirect(write.graph, layer.output, result, names)


def _gathered(parts: Parts, mixture: Mixture, inputs: dict[ir.Value, ir.Value]) -> ir.Model:
    """Return the layer with the entries of experts that are taken; it reads who is, and with what weight, too."""
    model = loosen(parts.expert(np.concatenate(mixture.partition.routed), bias=False), parts.layer)
    inside, _ = feed_forwards(analyse(model, interface=False))
    twin = next(each for each in inside if each.hidden.name == parts.layer.hidden.name)
    taken, weights = inputs.values()
    model.graph.inputs.extend((taken, weights))
    write = Writer(model.graph, next(iter(model.graph)), "taken", Names(model), parts.layer.input.dtype or FLOAT)
    for member in twin.group.members:
        _stack(write, member, taken, mixture.experts)
    for node in twin.nodes:
        for value in node.outputs:
            value.shape = None
    _weigh(Writer(model.graph, twin.down, "weighed", write.names, write.dtype), twin, taken, weights, mixture)
    return model


def _stack(write: Writer, member: Member, taken: ir.Value, experts: int) -> None:
    """Put what is gathered of a weight in the place of the weight."""
    value, axis = member.value, member.axis
    tensor = value.const_value
    assert tensor is not None
    if member.path:
        raise EditRefused(
            "its hidden entries are part of an axis of a weight, which cannot be gathered",
            where=f"weight {value.name!r}",
            remedy="take emit=blocks",
        )
    array = tensor.numpy()
    shape = list(array.shape)
    stacked = array.reshape(*shape[:axis], experts, -1, *shape[axis + 1 :])
    weights = write.constant("stacked", stacked)
    mark_learnt(weights, is_learnt(value) is not False)
    whole = write("Gather", weights, taken, dtype=tensor.dtype, axis=axis)
    sizes = write.integers("sizes", *shape[:axis], -1, *shape[axis + 1 :])
    value.replace_all_uses_with(write("Reshape", whole, sizes, dtype=tensor.dtype))
    del write.graph.initializers[value.name or ""]


def _weigh(write: Writer, layer: FeedForward, taken: ir.Value, weights: ir.Value, mixture: Mixture) -> None:
    """Multiply hidden entries by their expert's weight for the row."""
    size = len(mixture.partition.routed[0])
    own = write("Transpose", write("Gather", weights, taken, dtype=FLOAT, axis=0), dtype=FLOAT, perm=[1, 0])
    if write.dtype != FLOAT:
        own = write("Cast", own, to=write.dtype.value)
    column = write("Unsqueeze", own, write.integers("column", 2))
    each = write("Mul", column, write.floats("entries", np.ones(size)))
    entries = write("Flatten", each, axis=1)
    product = write("Mul", layer.hidden, write.restored(entries, layer.input, layer, -1))
    for place, value in enumerate(layer.down.inputs):
        if value is layer.hidden:
            layer.down.replace_input_with(place, product)
