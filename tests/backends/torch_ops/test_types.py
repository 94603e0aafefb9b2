"""Element types for which torch has few functions, beside numpy and ml_dtypes."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from bevel.backends.torch.ops import arithmetic, casting, elementwise, indexing, logic, ordering, reduction, scans
from bevel.backends.torch.types import to_array, to_tensor

UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
FLOAT8 = {
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}
EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def drawn(kind, seed, low=0):
    """Numbers from the whole range of a type, its ends among them."""
    info = np.iinfo(kind)
    numbers = np.random.default_rng(seed).integers(low, info.max, 256, kind, endpoint=True)
    numbers[:4] = low, info.max, info.max // 2, info.max // 2 + 1
    return np.random.default_rng(seed + 1).permutation(numbers)


BINARY = {
    "add": (arithmetic.add, np.add),
    "subtract": (arithmetic.subtract, np.subtract),
    "multiply": (arithmetic.multiply, np.multiply),
    "divide": (arithmetic.divide, np.floor_divide),
    "modulo": (arithmetic.modulo, np.mod),
    "fmod": (lambda a, b: arithmetic.modulo(a, b, fmod=1), np.fmod),
    "maximum": (arithmetic.maximum_of, np.maximum),
    "minimum": (arithmetic.minimum_of, np.minimum),
    "less": (logic.less, np.less),
    "less or equal": (logic.less_or_equal, np.less_equal),
    "greater": (logic.greater, np.greater),
    "greater or equal": (logic.greater_or_equal, np.greater_equal),
    "equal": (logic.equal, np.equal),
}


@pytest.mark.parametrize("kind", UNSIGNED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", BINARY)
def test_unsigned_numbers_of_every_width(name, kind):
    function, known = BINARY[name]
    a, b = drawn(kind, 0), drawn(kind, 2, low=1)
    assert_equal(function(to_tensor(a), to_tensor(b)), known(a, b))
    assert_equal(function(to_tensor(b), to_tensor(b)), known(b, b))


UNARY = {
    "sum": (reduction.reduce_sum, lambda x: x.sum(keepdims=True, dtype=x.dtype)),
    "product": (reduction.reduce_prod, lambda x: x.prod(keepdims=True, dtype=x.dtype)),
    "largest": (reduction.reduce_max, lambda x: x.max(keepdims=True)),
    "smallest": (reduction.reduce_min, lambda x: x.min(keepdims=True)),
    "place of the largest": (scans.arg_max, lambda x: x.argmax(keepdims=True)),
    "running sum": (lambda x: scans.cumulative_sum(x, 0), lambda x: x.cumsum(dtype=x.dtype)),
    "sorted": (lambda x: ordering.top_k(x, len(x))[0], lambda x: np.sort(x)[::-1]),
    "different": (lambda x: ordering.unique(x)[0], np.unique),
    "sign": (elementwise.sign, np.sign),
    "absolute": (elementwise.absolute, np.abs),
    "not": (logic.bitwise_not, np.invert),
    "limited": (lambda x: elementwise.clip(x, x[3], x[9]), lambda x: np.clip(x, x[3], x[9])),
    "moved": (lambda x: indexing.scatter_elements(x, torch.tensor([-1]), x[:1]), lambda x: np.append(x[:-1], x[0])),
    "gathered": (lambda x: indexing.gather_elements(x, torch.tensor([-1])), lambda x: x[-1:]),
}


@pytest.mark.parametrize("kind", UNSIGNED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", UNARY)
def test_unsigned_numbers_alone(name, kind):
    function, known = UNARY[name]
    x = drawn(kind, 5)
    assert_equal(function(to_tensor(x)), known(x))


@pytest.mark.parametrize("kind", UNSIGNED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("reduction_name", ["add", "mul", "max", "min"])
def test_unsigned_numbers_are_scattered(reduction_name, kind):
    x, updates = drawn(kind, 6), drawn(kind, 8)
    wanted, places = x.copy(), np.arange(256) // 2
    known = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction_name]
    known.at(wanted, places, updates)
    given = (to_tensor(x), torch.tensor(places), to_tensor(updates))
    assert_equal(indexing.scatter_elements(*given, reduction=reduction_name), wanted)
    assert_equal(indexing.scatter_nd(given[0], given[1].unsqueeze(1), given[2], reduction=reduction_name), wanted)


@pytest.mark.parametrize("kind", [*UNSIGNED, np.int64, np.int8], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bits_are_shifted_within_the_type(direction, kind):
    x = drawn(kind, 9)
    places = (np.arange(256) % np.iinfo(kind).bits).astype(kind)
    known = np.left_shift if direction == "LEFT" else np.right_shift
    assert_equal(logic.bit_shift(to_tensor(x), to_tensor(places), direction=direction), known(x, places))


def test_integers_are_divided_towards_zero():
    a, b = torch.tensor([7, -7, 7, -7]), torch.tensor([2, 2, -2, -2])
    assert arithmetic.divide(a, b).tolist() == [3, -3, -3, 3]


@pytest.mark.parametrize("kind", FLOAT8, ids=str)
@pytest.mark.parametrize("saturate", [0, 1])
def test_every_half_is_rounded_to_8_bits_as_by_ml_dtypes(kind, saturate):
    numbers = EVERY_HALF[~np.isnan(EVERY_HALF)]
    largest = float(ml_dtypes.finfo(FLOAT8[kind]).max)
    given = np.clip(numbers, -largest, largest) if saturate else numbers
    got = casting.cast(torch.tensor(numbers), to=kind, saturate=saturate).float().numpy()
    np.testing.assert_array_equal(got, given.astype(FLOAT8[kind]).astype(np.float32))


def test_every_half_is_rounded_to_4_bits_as_by_ml_dtypes():
    numbers = EVERY_HALF[~np.isnan(EVERY_HALF)]
    got = casting.cast(torch.tensor(numbers), to=torch.float8_e4m3fn, output_type=ir.DataType.FLOAT4E2M1)
    np.testing.assert_array_equal(got.float().numpy(), numbers.astype(ml_dtypes.float4_e2m1fn).astype(np.float32))


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_integers_lose_their_higher_bits(name):
    numbers, kind = np.arange(-128, 128, dtype=np.int8), ir.DataType[name.upper()]
    got = casting.cast(torch.tensor(numbers), to=torch.uint8 if name[0] == "u" else torch.int8, output_type=kind)
    assert got.tolist() == numbers.astype(getattr(ml_dtypes, name)).astype(int).tolist()


@pytest.mark.parametrize("source", ["int4", "uint4", "float4_e2m1fn"])
@pytest.mark.parametrize("target", ["int4", "uint4", "float4_e2m1fn"])
def test_four_bits_are_read_as_another_type(source, target):
    code = np.arange(16, dtype=np.uint8)
    before, after = (code.view(getattr(ml_dtypes, name)) for name in (source, target))
    kinds = [ir.DataType.from_numpy(array.dtype) for array in (before, after)]
    x = to_tensor(before, kinds[0])
    got = casting.bit_cast(x, to=to_tensor(after, kinds[1]).dtype, output_type=kinds[1], input_types=(kinds[0],))
    np.testing.assert_array_equal(got.float().numpy(), after.astype(np.float32))


def test_strings_spell_numbers():
    strings = np.array([["3.14", "1e-5"], ["-INF", "NaN"]], dtype=object)
    got = casting.cast(strings, to=torch.float32)
    np.testing.assert_array_equal(got.numpy(), np.float32([[3.14, 1e-5], [-np.inf, np.nan]]))
    assert casting.cast(np.array(["18446744073709551615"], object), to=torch.uint64).tolist() == [2**64 - 1]
    assert casting.cast(torch.tensor([0.1, 2.0]), to=None, output_type=ir.DataType.STRING).tolist() == ["0.1", "2.0"]


def assert_equal(got, wanted):
    got, wanted = to_array(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)
