"""Integers in torch: exact products, rounding and saturation of every version and type."""

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from bevel.backends.torch.ops.integer_products import matmul_integer
from bevel.backends.torch.ops.quantized import dequantize_linear, quantize_linear
from bevel.errors import UnsupportedModel
from tests.backends.torch_ops.single import by_onnxruntime, by_reference, by_torch, feed_of, model_of, same

TYPES = onnx.TensorProto
SIXTEEN = np.linspace(-40, 40, 24, dtype=np.float32).reshape(2, 3, 4)


def octets(*shape: int, low: int = 0, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng([seed, *shape]).integers(low, low + 256, shape).astype(np.uint8 if low == 0 else np.int8)
    )


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 24, 25])
@pytest.mark.parametrize("zero", [np.uint8(7), np.int8(-3)])
def test_one_scale_for_all_in_every_version(opset: int, zero: np.generic):
    inputs = [SIXTEEN, np.array(0.5, np.float32), np.asarray(zero)]
    model = model_of("QuantizeLinear", inputs, opset, outputs=(onnx.helper.np_dtype_to_tensor_dtype(zero.dtype),))
    assert same(by_torch(model, feed_of(model, inputs)), by_reference(model, feed_of(model, inputs)))
    whole = [by_torch(model, feed_of(model, inputs))[0], *inputs[1:]]
    back = model_of("DequantizeLinear", whole, opset)
    judge = by_onnxruntime if opset < 19 else by_reference  # the reference evaluator has no older ones
    assert same(by_torch(back, feed_of(back, whole)), judge(back, feed_of(back, whole)))


@pytest.mark.parametrize(
    "kind",
    [
        *(np.uint8, np.int8, np.uint16, np.int16, ml_dtypes.uint4, ml_dtypes.int4),
        *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn),
    ],
)
@pytest.mark.parametrize("blocks", [0, 2])
def test_types_by_axis_and_by_block(kind: type, blocks: int):
    scale = np.linspace(0.5, 4, 3 if not blocks else 12, dtype=np.float32).reshape((3,) if not blocks else (2, 3, 2))
    zero = np.zeros(scale.shape, kind)
    inputs = [SIXTEEN, scale, zero]
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    options = {"axis": 2, "block_size": blocks} if blocks else {"axis": 1}
    model = model_of("QuantizeLinear", inputs, 23, outputs=(number,), **options)
    (got,) = by_torch(model, feed_of(model, inputs))
    assert same([got.astype(kind)], by_reference(model, feed_of(model, inputs)))


def test_halves_go_to_the_even_integer_before_the_zero_point_is_added():
    x, zero = torch.tensor([0.5, 1.5, 2.5, -0.5, 300.0, -300.0]), torch.tensor(1, dtype=torch.uint8)
    got = quantize_linear(x, torch.tensor(1.0), zero, input_types=(TYPES.FLOAT, TYPES.FLOAT, TYPES.UINT8))
    assert got.tolist() == [1, 3, 3, 1, 255, 0]


def test_an_unknown_type_is_refused():
    with pytest.raises(UnsupportedModel, match="UNDEFINED"):
        quantize_linear(torch.ones(2), torch.tensor(1.0), torch.tensor(1, dtype=torch.int8), input_types=(1, 1, 0))


def test_a_scale_learns():
    scale = torch.tensor(0.5, requires_grad=True)
    dequantize_linear(torch.tensor([3, 4], dtype=torch.int8), scale, torch.tensor(1, dtype=torch.int8)).sum().backward()
    assert scale.grad == 5


def test_sums_beyond_single_precision_are_exact():
    a = np.full((1, 4096), 255, np.uint8)
    b = np.full((4096, 2), 255, np.uint8)
    b[-1, 1] = 254
    assert matmul_integer(torch.tensor(a), torch.tensor(b)).tolist() == [[266342400, 266342145]]


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 1]])
def test_a_quantized_convolution_is_onnxruntimes(pads: list[int]):
    scale = np.linspace(0.01, 0.02, 6, dtype=np.float32)
    bias = np.arange(6, dtype=np.int32) * 1000
    first = [octets(2, 32, 7, 7), np.float32(0.02), np.uint8(130)]
    inputs = [*first, octets(6, 16, 3, 3), scale, np.full(6, 120, np.uint8), np.float32(0.9), np.uint8(128), bias]
    model = model_of("QLinearConv", inputs, 10, outputs=(TYPES.UINT8,), constants=range(1, 9), group=2, pads=pads)
    feed = feed_of(model, inputs)
    assert same(by_torch(model, feed), by_onnxruntime(model, feed))


def test_integers_that_overflow_wrap():
    a, b = torch.full((1, 40000), 255, dtype=torch.uint8), torch.full((40000, 1), 255, dtype=torch.uint8)
    assert matmul_integer(a, b).item() == 40000 * 255 * 255 - 2**32


def test_rows_and_columns_have_their_own_zero_points():
    a, b = octets(3, 4), octets(4, 5, low=-128)
    inputs = [a, b, octets(3), octets(5, low=-128)]
    model = model_of("MatMulInteger", inputs, 10, outputs=(TYPES.INT32,))
    expected = (a.astype(int) - inputs[2].astype(int)[:, None]) @ (b.astype(int) - inputs[3].astype(int))
    assert (by_torch(model, feed_of(model, inputs))[0] == expected).all()
