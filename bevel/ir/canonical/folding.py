"""Constant shape arithmetic is computed once, by onnx's reference implementation.

Only integers, booleans and what is derived from them, and single numbers, are computed: weights are left alone,
whatever their size. Only operators whose every result is exact are, so nothing changes in the last bit.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from bevel.ir.canonical.constants import constant_of, known, replace_by_initializer
from bevel.ir.canonical.dead import subgraphs
from bevel.ir.provenance import provenance

# Deterministic, and exact or correctly rounded in IEEE arithmetic.
FOLDABLE: Final = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Floor", "Ceil", "Sqrt", "Reciprocal"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not", "Where"),
        *("Cast", "CastLike"),
        *("Shape", "Size", "Range", "Identity", "Concat", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze"),
        *("Reshape", "Flatten", "Expand", "Tile", "Transpose", "ReduceProd", "ReduceMax", "ReduceMin"),
    )
)
LARGEST: Final = 65_536
"""Elements; results above it stay computed."""

EXACT_TYPES: Final = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
# Half precision is missing: ONNX Runtime computes it in single, which rounds twice.
NUMBER_TYPES: Final = EXACT_TYPES | {ir.DataType.FLOAT, ir.DataType.DOUBLE}

# All that the reference implementation raises on inputs an operator does not accept; caught around its run and nothing
# else, for these are also what a mistake of ours would raise.
EVALUATION_ERRORS: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
)


def fold_constants(model: ir.Model, derived: set[ir.Value]) -> bool:
    """Replace every node whose outputs are constant, by inference or by computing them, by initializers.

    These are added to `derived`: being computed, they are no weights, and more may be computed from them. Tells
    whether there were any.
    """
    before = len(derived)
    fold_graph(model.graph, model.opset_imports.get("", 1), derived)
    return len(derived) > before


def fold_graph(graph: ir.Graph, opset: int, derived: set[ir.Value]) -> None:
    """Fold the nodes of one graph and of those inside it, in order."""
    for node in graph:
        for subgraph in subgraphs(node):
            fold_graph(subgraph, opset, derived)
        fold_node(node, opset, derived)


def fold_node(node: ir.Node, opset: int, derived: set[ir.Value]) -> None:
    """Replace one node by initializers, if it is constant and none of its outputs is the graph's."""
    graph = node.graph
    if node.domain != "" or graph is None or any(value.is_graph_output() for value in node.outputs):
        return
    results = inferred(node) or constant_outputs(node) or computed(node, opset, derived)
    if results is None:
        return
    for value, tensor in zip(node.outputs, results, strict=True):
        if value.name:
            replace_by_initializer(value, tensor)
            derived.add(graph.initializers[value.name])
    graph.remove(node, safe=True)


def inferred(node: ir.Node) -> list[ir.TensorProtocol] | None:
    """Give the contents that shape inference found, which follow from the sizes of the inputs alone."""
    tensors = [value.const_value for value in node.outputs if value.const_value is not None]
    if len(tensors) < max(1, len(node.outputs)) or any(tensor.size > LARGEST for tensor in tensors):
        return None
    return tensors


def constant_outputs(node: ir.Node) -> list[ir.TensorProtocol] | None:
    """Give the output of a ConstantOfShape whose shape was folded just now."""
    tensor = constant_of(node)
    return None if tensor is None else [tensor]


def computed(node: ir.Node, opset: int, derived: set[ir.Value]) -> list[ir.TensorProtocol] | None:
    """Compute the outputs of a node whose inputs are all constant; None if it must stay."""
    if node.op_type not in FOLDABLE or not node.inputs or may_be_large(node):
        return None
    if not all(value is None or is_shape_data(value, derived) for value in data_inputs(node)):
        return None
    results = evaluate(node, opset, [array_of(value) for value in node.inputs])
    if results is None or not all(result.size <= LARGEST for result in results):
        return None
    return as_tensors(node, results)


def data_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """Give the inputs whose contents matter; of what CastLike imitates only the type does."""
    if node.op_type == "CastLike" and len(node.inputs) == 2 and has_number_type(node.inputs[1]):
        return node.inputs[:1]
    return node.inputs


def has_number_type(value: ir.Value | None) -> bool:
    """Tell whether a value is known to be of a type computed here."""
    return value is not None and value.dtype in NUMBER_TYPES


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """Give the contents of a constant, or nothing of the right type."""
    tensor = known(value)
    if tensor is not None:
        return tensor.numpy()
    return None if value is None or value.dtype is None else np.empty(0, value.dtype.numpy())


def may_be_large(node: ir.Node) -> bool:
    """Tell whether small inputs could make a large output."""
    shape = node.outputs[0].shape
    if node.op_type not in ("Expand", "Range", "Tile"):
        return False
    return shape is None or not shape.is_static() or math.prod(shape.numpy()) > LARGEST


def is_shape_data(value: ir.Value, derived: set[ir.Value]) -> bool:
    """Tell whether a value is constant and no weight: small integers, a single number, or computed from such."""
    tensor = known(value)
    if tensor is None or tensor.size > LARGEST or tensor.dtype not in NUMBER_TYPES:
        return False
    if tensor.dtype in EXACT_TYPES or value in derived:
        return True
    return tensor.size == 1 and provenance(value) is None  # a gate or a temperature of one number is a parameter


def evaluate(node: ir.Node, opset: int, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray] | None:
    """Run one node on arrays, at the model's opset; None if it does not accept them."""
    proto = ir.to_proto(node)
    names = [name for name in dict.fromkeys(proto.input) if name]
    opsets = [onnx.OperatorSetIdProto(version=opset)]
    function = onnx.FunctionProto(name="fold", input=names, output=proto.output, node=[proto], opset_import=opsets)
    feed = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    from onnx.reference import ReferenceEvaluator  # here, for it takes 12 MB, and many graphs have nothing to compute

    evaluator = ReferenceEvaluator(function)
    try:
        with np.errstate(all="raise"):
            results = evaluator.run(None, feed, {})
    except EVALUATION_ERRORS:
        return None
    return [np.asarray(result) for result in results]


def as_tensors(node: ir.Node, results: Sequence[np.ndarray]) -> list[ir.TensorProtocol] | None:
    """Wrap results, unless their types are not those the model says."""
    tensors = [ir.tensor(result.copy()) for result in results]
    stated = [value.dtype for value in node.outputs]
    if len(tensors) != len(stated) or any(tensor.dtype not in NUMBER_TYPES for tensor in tensors):
        return None
    if any(dtype not in (None, tensor.dtype) for dtype, tensor in zip(stated, tensors, strict=True)):
        return None
    return list(tensors)
