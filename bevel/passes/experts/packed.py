"""Experts of integer weights: com.microsoft's QMoE in the place of a feed-forward layer.

The operator has the activation inside, and knows few: which one a layer has is found by comparing numbers. A gated one
has to be silu(gate) * up. Router and choice are those of the other emissions; what QMoE would make of the scores (a
softmax) is replaced by ones, its input `router_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from scipy.special import expit

from bevel.errors import EditRefused
from bevel.ir.bypass import redirect
from bevel.ir.feed_forward import FeedForward
from bevel.ir.names import Names
from bevel.ir.split import Parts
from bevel.passes.experts.emission import Mixture, always, scored
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.writing import Writer

Array = np.ndarray[Any, Any]

MICROSOFT: Final = "com.microsoft"
# How near the layer's activation has to be to one the operator knows; the tanh form of GELU is this near the exact one.
NEAR: Final = 2e-3


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))))


ACTIVATIONS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * expit(x),
    "gelu": _gelu,
}
# What the gate may be multiplied by before: GELU written out divides by the root of two.
FACTORS: Final = (1.0, 2**0.5)


@dataclass(frozen=True, eq=False)
class Form:
    """A layer as the operator has it: its activation, `[entries, channels]` and `[entries]` of gate and up."""

    activation: str
    gate: tuple[Array, Array]
    up: tuple[Array, Array] | None


def form_of(evidence: Evidence) -> Form:
    """Return a layer as the operator has it; raises `EditRefused` where it has no such layer."""
    layer = evidence.layer
    values = [layer.gate] if layer.up is None else [layer.gate, layer.up]
    found = dict(zip(values, evidence.run(evidence.parts.between(layer.input, values), evidence.rows), strict=True))
    bent = evidence.hidden if layer.up is None else evidence.bent
    gate, activation, factor = found[layer.gate], "", 1.0
    for name, function in ACTIVATIONS.items():
        for each in FACTORS:
            if _near(function(gate * each), bent):
                activation, factor = name, each
    gated = layer.up is not None
    if not activation or (gated and (activation != "silu" or not _near(bent * found[values[1]], evidence.hidden))):
        raise EditRefused(
            "QMoE has no such activation",
            where=f"group {layer.name!r}",
            remedy="it has relu, silu and gelu, and silu(gate) * up; others take emit=blocks",
        )
    if layer.channels[0] != layer.channels[1]:
        raise EditRefused("QMoE gives as many channels as it reads", where=f"group {layer.name!r}")
    weight, bias = evidence.linear(layer.gate)
    up = None if layer.up is None else evidence.linear(layer.up)
    return Form(activation, (weight * factor, bias * factor), up)


def _near(found: Array, wanted: Array) -> bool:
    return bool(np.abs(found - wanted).max() <= NEAR * np.abs(wanted).max())


def pack(weights: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Quantize along the last axis in blocks: codes from the middle of their range up, packed low bits first; scales.

    >>> codes, scales = pack(np.array([[[-7.0, 7.0, 0.0, 3.5]]]), 4, 4)
    >>> codes.tolist(), scales.tolist()
    ([[[241, 200]]], [[[1.0]]])
    """
    blocks = weights.reshape(*weights.shape[:-1], -1, block)
    largest = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(blocks).max(-1), 1e-30) / largest
    codes = np.clip(np.rint(blocks / scales[..., None]), -largest - 1, largest) + 2 ** (bits - 1)
    flat = codes.astype(np.uint8).reshape(weights.shape)
    packed = flat if bits == 8 else flat[..., ::2] | (flat[..., 1::2] << 4)
    return packed, scales.astype(np.float32)


def require_blocks(layer: FeedForward, mixture: Mixture, block: int) -> None:
    """Raise `EditRefused` where weights do not divide into blocks."""
    sizes = layer.channels[0], len(mixture.partition.routed[0])
    uneven = [size for size in sizes if size % block]
    if uneven:
        raise EditRefused(
            f"{uneven[0]} entries of an expert's weights do not divide into blocks of {block}",
            where=f"group {layer.name!r}",
            remedy="take a smaller block, or fewer experts",
        )


def qmoe(parts: Parts, form: Form, mixture: Mixture, down: Array, names: Names, bits: int, block: int) -> None:
    """Write a QMoE for the routed experts, and what always runs beside it; `down` is the last product's weights."""
    layer = parts.layer
    graph, width = parts.model.graph, layer.channels[0]
    write = Writer(graph, layer.down, f"{layer.name}.experts", names, layer.input.dtype or ir.DataType.FLOAT)
    rows = write.flattened(layer.input, layer, width)
    scores = scored(write, rows, parts, mixture)
    shape = write("Shape", scores, dtype=ir.DataType.INT64)
    gain = ir.tensor(np.array([mixture.gain], np.float32))
    ones = write("ConstantOfShape", shape, value=gain)
    first, bias = _first(form, mixture)
    second = np.stack([down[part].T for part in mixture.partition.routed])
    constants: list[ir.Value | None] = []
    for name, array in (("up", first), ("down", second)):
        codes, scales = pack(array, bits, block)
        constants += [write.constant(name, codes), write.constant(f"{name}.scales", scales), None]
    if np.any(bias):
        constants[2] = write.constant("up.bias", bias.astype(np.float32))
    inputs = [rows, scores, *constants, *[None] * 6, ones]
    swiglu = {"swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0} if form.up is not None else {}
    attributes = {
        "k": mixture.active,
        "activation_type": "swiglu" if form.up is not None else form.activation,
        "expert_weight_bits": bits,
        "block_size": block,
        "normalize_routing_weights": 0,  # router_weights count as they are
        "accuracy_level": 4,  # activations in 8 bits, without which 4-bit weights run at half the speed
        **swiglu,
    }
    total = write.foreign(MICROSOFT, "QMoE", inputs, attributes)
    result = always(write, parts, mixture, write.restored(total, layer.input, layer, width))
    result.shape = layer.output.shape
    redirect(graph, layer.output, result, names)
    graph.opset_imports.setdefault(MICROSOFT, 1)
    parts.model.opset_imports.setdefault(MICROSOFT, 1)


def _first(form: Form, mixture: Mixture) -> tuple[Array, Array]:
    """Return the first product's weights and constants by expert; gates and ups stand side by side."""
    parts = mixture.partition.routed
    weight, bias = form.gate
    if form.up is None:
        return np.stack([weight[part] for part in parts]), np.stack([bias[part] for part in parts])
    both = [np.stack([weight[part], form.up[0][part]], axis=1).reshape(-1, weight.shape[1]) for part in parts]
    added = [np.stack([bias[part], form.up[1][part]], axis=1).ravel() for part in parts]
    return np.stack(both), np.stack(added)
