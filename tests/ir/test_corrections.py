"""What a Slice leaves of an axis of unknown size is unknown too."""

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from bevel.backends.onnxruntime import Session
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
