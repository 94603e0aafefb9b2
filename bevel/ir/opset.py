"""A model of an older opset at opset 13, where DequantizeLinear has a scale for each channel."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer

PER_CHANNEL: Final = 13
"""The first opset whose DequantizeLinear has an axis."""
IR_VERSION: Final = 7
"""The file version of that time."""
OLDEST: Final = 7
"""The first opset whose operators broadcast as they do today."""

# From opset 7 to 13 these got more types, optional attributes with the old meaning as default, and nothing else.
UNCHANGED_NAMES: Final = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Concat Constant Conv ConvTranspose CumSum
    DepthToSpace Div Elu Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalMaxPool Greater Identity If InstanceNormalization IsNaN LRN LSTM LeakyRelu Less Log Loop
    LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or
    PRelu Pow RNN Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare Relu Reshape
    ScatterElements ScatterND Shape Sigmoid Sign Size Softplus SpaceToDepth Sqrt Sub Sum Tanh Tile Transpose Where
"""
UNCHANGED: Final = frozenset(UNCHANGED_NAMES.split())
# What are attributes of these became operands, in this order.
OPERANDS: Final = {
    "Clip": ("min", "max"),
    "Pad": ("pads", "value"),
    "ReduceSum": ("axes",),
    "Slice": ("starts", "ends", "axes"),
    "Split": ("split",),
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
}
# With two operands, data and scales, these are what Resize does with the settings below.
RESIZING: Final = frozenset({"Upsample", "Resize"})
AS_IT_WAS: Final = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
# These ran over all axes from theirs on, in opset 13 over theirs alone.
OVER_LAST: Final = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


def raise_opset(model: ir.Model, version: int = PER_CHANNEL) -> bool:
    """Bring a model of opset 7 or newer to a version, if it is older; say whether it was.

    Raises `EditRefused`, before anything is written, for an operator that may mean something else there.
    """
    now = model.opset_imports.get("", version)
    if now >= version:
        return False
    steps = [_step(node, now, version) for graph in model.graphs() for node in graph if not node.domain]
    names = Names(model)
    for step in steps:
        step(names)
    model.opset_imports[""] = version
    for graph in model.graphs():
        if "" in graph.opset_imports:
            graph.opset_imports[""] = version
    model.ir_version = max(model.ir_version, IR_VERSION)
    return True


def _step(node: ir.Node, now: int, version: int) -> Callable[[Names], None]:
    """Return what makes a node mean in the new version what it means now."""
    op_type = node.op_type
    if now < OLDEST:
        raise _refused(node, now, version)
    if op_type in UNCHANGED or _since(op_type, now) == _since(op_type, version):
        return lambda names: _drop(node, "spatial") if op_type == "BatchNormalization" else None
    if op_type in OPERANDS:
        return lambda names: _operands(node, OPERANDS[op_type], names)
    if op_type in RESIZING and len(node.inputs) == 2:
        return lambda names: _resize(node)
    if op_type == "Resize" or (op_type == "TopK" and len(node.inputs) > 1):
        return lambda names: None
    if op_type in OVER_LAST:
        axis = _only_axis(node)
        return lambda names: _flatten(node, names) if axis is None else node.attributes.add(ir.AttrInt64("axis", axis))
    if op_type == "Dropout" and not node.outputs[1:]:
        return lambda names: _drop(node, "ratio")
    raise _refused(node, now, version)


def _refused(node: ir.Node, now: int, version: int) -> EditRefused:
    return EditRefused(
        f"opset {version} is needed, the model has {now}, and {node.op_type} may mean something else there",
        where=f"node {node.name!r}",
        remedy=f"export the model with opset {version} or newer",
    )


def _since(op_type: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(op_type, version).since_version)
    except onnx.defs.SchemaError:
        return -version  # differs from any other version's


def _only_axis(node: ir.Node) -> int | None:
    """Return the one axis that a node runs over, if there is but one with more than one entry."""
    axis = node.attributes.get_int("axis", 1)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axis == -1:
        return axis
    return axis if shape is not None and all(size == 1 for size in shape[axis % len(shape) + 1 :]) else None


def _flatten(node: ir.Node, names: Names) -> None:
    """Let a node run over the last axis of a matrix, whose rows are all axes from its own on, and shape that again."""
    assert isinstance(node.graph, ir.Graph)
    data, axis = node.inputs[0], node.attributes.get_int("axis", 1)
    flat = ir.node("Flatten", [data], {"axis": axis}, name=names.free(f"{node.name}.flat"))
    over = ir.node(node.op_type, flat.outputs, {"axis": -1}, name=names.free(f"{node.name}.last"))
    size = ir.node("Shape", [data], name=names.free(f"{node.name}.shape"))
    for made in (flat, over, size):
        made.outputs[0].name = names.free(f"{made.name}.output")
    size.outputs[0].dtype = ir.DataType.INT64
    for made in (flat, over):
        made.outputs[0].type = node.outputs[0].type
    node.graph.insert_before(node, [flat, over, size])
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    for place, made in enumerate((over, size)):
        node.replace_input_with(place, made.outputs[0])


def _operands(node: ir.Node, attributes: Sequence[str], names: Names) -> None:
    """Turn attributes into operands behind the first; a node that has none of them is as it should be."""
    given = {name: node.attributes.pop(name) for name in attributes if name in node.attributes}
    if not given:
        return
    assert isinstance(node.graph, ir.Graph)
    count = max(place for place, name in enumerate(attributes, 1) if name in given)
    node.resize_inputs(1 + count)
    for place, name in enumerate(attributes, 1):
        if name in given:
            tensor = _tensor(given[name], node.inputs[0])
            node.replace_input_with(place, add_initializer(node.graph, f"{node.name}.{name}", tensor, names))


def _tensor(attribute: ir.Attr, data: ir.Value | None) -> ir.TensorProtocol:
    """Return the numbers of an attribute: integers as they are, one of floats in the type of the data."""
    if attribute.type == ir.AttributeType.INTS:
        return ir.tensor(np.asarray(attribute.as_ints(), np.int64))
    dtype = data.dtype if data is not None and data.dtype is not None else ir.DataType.FLOAT
    return ir.tensor(np.asarray(attribute.as_float()).astype(dtype.numpy()))


def _resize(node: ir.Node) -> None:
    scales = node.inputs[1]
    node.op_type = "Resize"
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, scales)
    for name, value in AS_IT_WAS.items():
        node.attributes.add(ir.AttrString(name, value))


def _drop(node: ir.Node, attribute: str) -> None:
    if attribute in node.attributes:
        node.attributes.pop(attribute)
