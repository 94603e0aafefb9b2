"""Everything computed, and what is not taken multiplied by zero: what a mixture means, and what always runs beside it.

The mask is what every other emission is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.split import Parts
from bevel.passes.experts.mixture import Mixture, dtype_of
from bevel.passes.experts.routing import FLOAT, routes
from bevel.passes.experts.writing import Writer

__all__ = ["Body", "Emitter", "Mixture", "always", "as_it_is", "masked", "writer"]

Emitter: TypeAlias = Callable[[Parts, Mixture, Names], None]
"""Puts a mixture in the place of a layer."""
Body: TypeAlias = Callable[[ir.Model], ir.Model]
"""What is done to an expert, a model of its own, before it is put in place."""


def as_it_is(model: ir.Model) -> ir.Model:
    """Leave an expert in the layer's own operators."""
    return model


def writer(parts: Parts, names: Names) -> Writer:
    """Return what writes before the last product of a layer."""
    layer = parts.layer
    return Writer(parts.model.graph, layer.down, f"{layer.name}.experts", names, dtype_of(layer))


def masked(parts: Parts, mixture: Mixture, names: Names) -> None:
    """Multiply the hidden entries of experts that a row does not choose by zero."""
    layer, write = parts.layer, writer(parts, names)
    rows = write.flattened(layer.input, layer, layer.channels[0])
    mask_hidden(
        write, parts, mixture, write("Transpose", routes(write, rows, parts, mixture).weights, dtype=FLOAT, perm=[1, 0])
    )


def mask_hidden(write: Writer, parts: Parts, mixture: Mixture, mask: ir.Value) -> None:
    """Multiply the hidden entries of each expert by what it counts for each row, `mask` `[rows, experts]`."""
    layer = parts.layer
    if write.dtype != FLOAT:
        mask = write("Cast", mask, to=write.dtype.value)
    routed, shared = mixture.columns(layer.size)
    entries = write("MatMul", mask, write.floats("belongs", routed))
    entries = write("Add", entries, write.floats("shared", shared))
    product = write("Mul", layer.hidden, write.restored(entries, layer.input, layer, layer.size))
    product.shape = layer.hidden.shape
    for place, value in enumerate(layer.down.inputs):
        if value is layer.hidden:
            layer.down.replace_input_with(place, product)


def always(write: Writer, parts: Parts, mixture: Mixture, result: ir.Value, body: Body = as_it_is) -> ir.Value:
    """Add what does not depend on the router: the shared expert, or at least the constant of the last product."""
    layer = parts.layer
    if len(mixture.partition.shared):
        model = body(parts.expert(mixture.partition.shared, bias=True))
        return write("Add", result, write.graft(model, layer.input, "shared"))
    if layer.bias is None:
        return result
    bias = layer.down.inputs[layer.bias]
    assert bias is not None
    if layer.axis != layer.rank - 1:
        shape = [1] * layer.rank
        shape[layer.axis] = -1
        bias = write("Reshape", bias, write.integers("bias.shape", *shape))
    return write("Add", result, bias)
