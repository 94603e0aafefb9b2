"""What shape inference assumes too much about: bounds of slices, and operators outside the standard."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from tests.graphs import graph

COUNTED = """
counted (float[batch, length, 4] x) => (float[batch, left, 1] y)
<int64[1] start = {0}, int64[1] end = {512}, int64[1] axis = {1}> {
  part = Slice (x, start, end, axis)
  count = Shape <start = 1, end = 2> (part)
  factor = Cast <to = 1> (count)
  y = Mul (part, factor)
}
"""


def test_a_bound_beyond_an_unknown_size_is_not_taken_for_the_size() -> None:
    model = graph(COUNTED)
    with Session(model) as session:
        answer = session.run({"x": np.ones((2, 5, 4), np.float32)})["y"]
    assert answer.max() == 5  # not 512


def test_one_entry_of_an_unknown_size_is_one_entry() -> None:
    model = graph(COUNTED.replace("{512}", "{1}"))
    assert next(iter(model.graph)).outputs[0].shape[1] == 1


def test_a_quantized_product_has_the_type_of_its_zero_point() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [2, 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 4])
    weights = {"scale": np.float32(0.1), "zero": np.uint8(128), "w": np.arange(12, dtype=np.uint8).reshape(3, 4)}
    product = ["x", "scale", "zero", "w", "scale", "zero", "", "scale", "zero"]
    nodes = [
        onnx.helper.make_node("QGemm", product, ["q"], domain="com.microsoft"),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    made = onnx.helper.make_graph(nodes, "quantized", [x], [y], initializers)
    model = bevel.load(onnx.helper.make_model(made, opset_imports=opsets, ir_version=10))
    assert next(iter(model.graph)).outputs[0].dtype == ir.DataType.UINT8


SIZES = {"x": (3, 4, 6, 8), "row": (5,)}
CALLS = (
    "com.microsoft.QLinearAveragePool <kernel_shape = [2, 3], strides = [2, 1]> (q, s, z, s, z)",
    "com.microsoft.QLinearGlobalAveragePool <channels_last = 0> (q, s, z, s, z)",
    "com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (q, s, z, s, z)",
    "com.microsoft.FusedMatMul <transBatchA = 1, transBatchB = 1, transB = 1> (x, x)",
    "ai.onnx.ml.ArrayFeatureExtractor (x, i)",
    "ai.onnx.ml.ArrayFeatureExtractor (row, i)",
)


@pytest.mark.parametrize("call", CALLS)
def test_shapes_of_operators_outside_the_standard_are_those_of_the_run(call: str) -> None:
    model = bevel.load(
        onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "ai.onnx.ml" : 3]>
        g (float[3, 4, 6, 8] x, float[5] row) => (y)
        <float s = {{0.1}}, uint8 z = {{3}}, int64[2, 3] i = {{0, 4, 2, 1, 3, 0}}> {{
          q = QuantizeLinear (x, s, z)
          y = {call}
        }}""")
    )
    with Session(model, level=Level.AS_WRITTEN) as session:
        answer = session.run({name: np.ones(size, np.float32) for name, size in SIZES.items()})["y"]
    shape = model.graph.outputs[0].shape
    assert shape is None if "transBatch" in call else tuple(shape) == answer.shape
