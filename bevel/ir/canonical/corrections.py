"""Shape inference of Slice that assumes nothing about sizes it does not know.

The library takes bounds that are numbers to lie inside an axis of unknown size: it gives `x[:, :512]` the size 512,
whatever the run brings. Folding what follows from that would change the model.
"""

from typing import Final

import onnx_ir as ir
from onnx_shape_inference import ShapeInferenceContext, registry

FIRST_OPSET: Final = 10
BEYOND: Final = 2**29
"""Exporters write a bound larger than every real size for "to the end"."""

Dim = int | ir.SymbolicDim

registry.collect()
_assuming = registry.get("", "Slice", FIRST_OPSET)
assert _assuming is not None


def infer_slice(context: ShapeInferenceContext, node: ir.Node) -> None:
    """Infer as the library does, then take back what it assumed."""
    _assuming(context, node)
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None:
        return
    pairs = zip(source.shape, output.shape, strict=True)
    output.shape = ir.Shape([_sure(context, before, after) for before, after in pairs])


registry.register("", "Slice", since_version=FIRST_OPSET)(infer_slice)


def _sure(context: ShapeInferenceContext, before: Dim, after: Dim) -> Dim:
    """Return the size after slicing; a number that came from an unknown size is only sure up to one entry."""
    if isinstance(before, int) or not isinstance(after, int) or after <= 1:
        return after
    return before if after >= BEYOND else context.new_symbolic_dim()
