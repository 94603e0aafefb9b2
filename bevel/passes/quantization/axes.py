"""Whether the blocks of a layer run along its inputs or its outputs: as the block of the model around it errs less.

Blocks along the inputs share a scale among inputs of one output, so an input whose weights are large spoils its
neighbours in every output; blocks along the outputs keep it to itself. Layer after layer is quantized to the nearest
codes both ways, and what it is part of, a residual block, is run on the samples; the way with the lesser squared error
is kept while the next ones are looked at. A layer outside of blocks has its own output.

Source: Heo et al. 2024, Rethinking Channel Dimensions to Isolate Outliers for Low-bit Weight Quantization (AdaDim).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.ir.blocks import find_blocks
from bevel.passes.base import Context
from bevel.passes.fitting.moments import visits
from bevel.passes.fitting.walk import Walk
from bevel.passes.formats.blocks import finite
from bevel.passes.quantization.forms import Found
from bevel.passes.quantization.targets import Target
from bevel.passes.quantization.writing import Shown

Array = np.ndarray[Any, Any]
Trial: TypeAlias = Callable[[Target, str, Array], Found]
"""What quantizes a weight's matrix in blocks along `in` or `out`."""

AXES: Final = ("in", "out")
# Blocks are compared on at most so many samples.
SAMPLES: Final = 16


def better_axes(model: ir.Model, targets: Sequence[Target], trial: Trial, context: Context) -> Mapping[str, str]:
    """Return which axis each weight that is read by one layer has blocks along, by its name."""
    layers = {target.layer: target for target in targets if target.layer is not None and not target.others}
    ends = {node: block.end for block in find_blocks(model).innermost for node in block.nodes}
    chosen: dict[str, str] = {}
    few = replace(context, samples=min(context.samples, SAMPLES))
    with Shown() as shown:
        for layer, walk in visits(model, list(layers), few):
            target = layers[layer]
            found = _trials(target, trial)
            if found:
                end = ends.get(layer.node, layer.node.outputs[0])
                along = _best(target, found, walk, end, shown)
                shown.show_alone([(target, found[along])])
                chosen[target.name] = along
    return chosen


def _trials(target: Target, trial: Trial) -> Mapping[str, Found]:
    """Return a weight quantized both ways; nothing if it is not finite."""
    with target.reading() as matrix:
        return {along: trial(target, along, matrix) for along in AXES} if finite(matrix) else {}


def _best(target: Target, found: Mapping[str, Found], walk: Walk, end: ir.Value, shown: Shown) -> str:
    """Return the way that leaves a later value nearest to what it is with the weight as it is."""
    shown.show_alone([])
    expected = list(walk.ahead(end))
    errors = {}
    for along, each in found.items():
        shown.show_alone([(target, each)])
        pairs = zip(expected, walk.ahead(end), strict=True)
        errors[along] = sum(float(np.square(np.subtract(a, b, dtype=np.float64)).sum()) for a, b in pairs)
    return min(errors, key=lambda along: errors[along])
