"""A model of an older opset at opset 13, where DequantizeLinear has a scale for each channel."""

from collections.abc import Callable
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
OLDEST: Final = 9

# From opset 9 to 13 these got more types, optional attributes with the old meaning as default, and nothing else.
UNCHANGED_NAMES: Final = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Concat Conv ConvTranspose CumSum
    DepthToSpace Div Elu Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalMaxPool Greater Identity InstanceNormalization LRN LSTM LeakyRelu Less Log MatMul
    Max MaxPool Mean Min Mul Neg Not Or PRelu Pow RNN Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSumSquare Relu Reshape Shape Sigmoid Sign Size Slice Softplus SpaceToDepth Sqrt
    Sub Sum Tanh Tile Transpose Where
"""
UNCHANGED: Final = frozenset(UNCHANGED_NAMES.split())
# What is an attribute of these became an operand.
OPERANDS: Final = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}
# These ran over all axes from theirs on, in opset 13 over theirs alone.
OVER_LAST: Final = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


def raise_opset(model: ir.Model, version: int = PER_CHANNEL) -> bool:
    """Bring a model of opset 9 or newer to a version, if it is older; say whether it was.

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
        return lambda names: None
    if op_type in OPERANDS and len(node.inputs) == 1:
        return lambda names: _operand(node, OPERANDS[op_type], names)
    if op_type in OVER_LAST and _is_last(node, node.attributes.get_int("axis", 1)):
        return lambda names: node.attributes.add(ir.AttrInt64("axis", -1))
    if op_type == "Dropout" and not node.outputs[1:]:
        return lambda names: _drop(node, "ratio")
    if op_type == "Clip" and len(node.inputs) > 1:
        return lambda names: None
    raise _refused(node, now, version)


def _refused(node: ir.Node, now: int, version: int) -> EditRefused:
    return EditRefused(
        f"scales for each channel need opset {version}, the model has {now}, and {node.op_type} may differ there",
        where=f"node {node.name!r}",
        remedy=f"export the model with opset {version} or newer",
    )


def _since(op_type: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(op_type, version).since_version)
    except onnx.defs.SchemaError:
        return -version  # differs from any other version's


def _is_last(node: ir.Node, axis: int) -> bool:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _operand(node: ir.Node, attribute: str, names: Names) -> None:
    given = node.attributes.get_ints(attribute, None)
    _drop(node, attribute)
    if given is None:
        return
    assert isinstance(node.graph, ir.Graph)
    tensor = ir.tensor(np.asarray(list(given), np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, add_initializer(node.graph, f"{node.name}.{attribute}", tensor, names))


def _drop(node: ir.Node, attribute: str) -> None:
    if attribute in node.attributes:
        node.attributes.pop(attribute)
