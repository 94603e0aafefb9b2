"""Experts of integer weights: com.microsoft's QMoE in the place of a feed-forward layer.

Router and choice are those of the other emissions. The operator would weight experts by the softmax of the scores of
those taken; where all count one, its input `router_weights` says so.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.feed_forward import FeedForward
from bevel.ir.names import Names
from bevel.ir.split import Parts
from bevel.passes.experts.emission import writer
from bevel.passes.experts.form import Form
from bevel.passes.experts.kernel import in_place
from bevel.passes.experts.mixture import Mixture, require_fixed
from bevel.passes.experts.routing import scored
from bevel.passes.experts.writing import Writer

Array = np.ndarray[Any, Any]


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
            remedy=_remedy(gcd(*sizes)),
        )


def _remedy(common: int) -> str:
    """Say which blocks divide what has this common divisor: powers of two from 16 on."""
    blocks = [str(2**power) for power in range(4, 9) if common % 2**power == 0]
    return f"block={blocks[-1]}" if blocks else "take another number of experts, or emit=dynamic or blocks"


def qmoe(parts: Parts, form: Form, mixture: Mixture, down: Array, names: Names, bits: int, block: int) -> None:
    """Write a QMoE for the routed experts, and what always runs beside it; `down` is the last product's weights."""
    layer = parts.layer
    require_fixed(layer, mixture, "QMoE")
    require_blocks(layer, mixture, block)
    write = writer(parts, names)
    rows = write.flattened(layer.input, layer, layer.channels[0])
    scores = scored(write, rows, parts, mixture)
    first, bias = form.first(mixture)
    # A softmax over `active` experts adds up to one; the mixture's weights add up to `active`.
    gain = mixture.gain * mixture.active if mixture.soft else 1.0
    second = np.stack([gain * down[part].T for part in mixture.partition.routed])
    constants: list[ir.Value | None] = []
    for name, array in (("up", first), ("down", second)):
        codes, scales = pack(array, bits, block)
        constants += [write.constant(name, codes), write.constant(f"{name}.scales", scales), None]
    if np.any(bias):
        constants[2] = write.constant("up.bias", bias.astype(np.float32))
    weights = [] if mixture.soft else [*[None] * 6, _weights(write, scores, mixture.gain)]
    attributes = {
        "k": mixture.active,
        "expert_weight_bits": bits,
        "block_size": block,
        "normalize_routing_weights": int(mixture.soft),  # router_weights count as they are
        "accuracy_level": 4,  # activations in 8 bits, without which 4-bit weights run at half the speed
        **form.attributes,
    }
    in_place(write, parts, mixture, "QMoE", [rows, scores, *constants, *weights], attributes)


def _weights(write: Writer, scores: ir.Value, gain: float) -> ir.Value:
    """Write one weight for all experts and rows."""
    shape = write("Shape", scores, dtype=ir.DataType.INT64)
    return write("ConstantOfShape", shape, value=ir.tensor(np.array([gain], np.float32)))
