"""Where the library's shape inference assumes too much, ours stands in its place."""

import math
from typing import Final

import onnx_ir as ir
from onnx_shape_inference import ShapeInferenceContext, registry

Dim = int | ir.SymbolicDim

MICROSOFT: Final = "com.microsoft"
FIRST_SLICE: Final = 10
BEYOND: Final = 2**29
"""Exporters write a bound larger than every real size for "to the end"."""
QGEMM_ZERO_POINT: Final = 8
"""The input of QGemm that gives the type of its output; without it the output is not quantized."""

registry.collect()
_slice = registry.get("", "Slice", FIRST_SLICE)
_qgemm = registry.get(MICROSOFT, "QGemm", 1)
_average_pool = registry.get("", "AveragePool", 1)
_fused_product = registry.get(MICROSOFT, "FusedMatMul", 1)
assert _slice is not None and _qgemm is not None and _average_pool is not None and _fused_product is not None


def infer_slice(context: ShapeInferenceContext, node: ir.Node) -> None:
    """Infer the sizes of parts, without taking bounds to lie inside an axis of unknown size.

    The library gives `x[:, :512]` the size 512, whatever the run brings; folding what follows would change the model.
    """
    _slice(context, node)
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None:
        return
    pairs = zip(source.shape, output.shape, strict=True)
    output.shape = ir.Shape([_sure(context, before, after) for before, after in pairs])


def _sure(context: ShapeInferenceContext, before: Dim, after: Dim) -> Dim:
    """Return the size after slicing; a number that came from an unknown size is only sure up to one entry."""
    if isinstance(before, int) or not isinstance(after, int) or after <= 1:
        return after
    return before if after >= BEYOND else context.new_symbolic_dim()


def infer_qgemm(context: ShapeInferenceContext, node: ir.Node) -> None:
    """Infer as the library does, and the type from the output's zero point; the library always says float."""
    _qgemm(context, node)
    zero_point = node.inputs[QGEMM_ZERO_POINT] if len(node.inputs) > QGEMM_ZERO_POINT else None
    if zero_point is not None:
        node.outputs[0].type = zero_point.type


def infer_pool(context: ShapeInferenceContext, node: ir.Node) -> None:
    """Infer as for AveragePool; the library leaves the size as it is."""
    if node.attributes.get_int("channels_last", 0):
        _set(context, node, None)
    else:
        _average_pool(context, node)


def infer_global_pool(context: ShapeInferenceContext, node: ir.Node) -> None:
    """Infer a size of one along every axis but those of samples and channels; the library leaves them as they are."""
    source = node.inputs[0]
    shape = None if source is None or source.shape is None else list(source.shape)
    last = bool(node.attributes.get_int("channels_last", 0))
    channels = 1 if shape is None or not last else len(shape) - 1
    _set(context, node, shape and [size if place in (0, channels) else 1 for place, size in enumerate(shape)])


def infer_fused_product(context: ShapeInferenceContext, node: ir.Node) -> None:
    """Infer as the library does, but nothing where axes of batches are moved, of which it does not know."""
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        _set(context, node, None)
    else:
        _fused_product(context, node)


def infer_features(context: ShapeInferenceContext, node: ir.Node) -> None:
    """Infer as many columns as there are indices in all, of one row at least; the library takes the last axis's."""
    data, indices = (None if value is None else value.shape for value in node.inputs[:2])
    if data is None or indices is None:
        return _set(context, node, None)
    count = math.prod(indices.numpy()) if indices.is_static() else context.new_symbolic_dim()
    return _set(context, node, [*(data[:-1] if len(data) > 1 else (1,)), count])


def _set(context: ShapeInferenceContext, node: ir.Node, sizes: list[Dim] | None) -> None:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    context.set_shape_and_dtype(node.outputs[0], None if sizes is None else ir.Shape(sizes), dtype)


registry.register("", "Slice", since_version=FIRST_SLICE)(infer_slice)
registry.register(MICROSOFT, "QGemm", since_version=1)(infer_qgemm)
registry.register(MICROSOFT, "QLinearAveragePool", since_version=1)(infer_pool)
registry.register(MICROSOFT, "QLinearGlobalAveragePool", since_version=1)(infer_global_pool)
registry.register("ai.onnx.ml", "ArrayFeatureExtractor", since_version=1)(infer_features)
for product in ("FusedMatMul", "TransposeMatMul"):
    registry.register(MICROSOFT, product, since_version=1)(infer_fused_product)
