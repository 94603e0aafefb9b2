"""Codes: the nearest of every format, packed and unpacked, and the codebooks themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bevel.errors import UsageError
from bevel.passes.formats import Quantized, Scheme, any_format, block_format, blocks
from bevel.passes.formats.blocks import join, split
from bevel.passes.formats.codebooks import Codebook
from bevel.passes.formats.packing import from_planes, pack, planes, to_planes, unpack
from bevel.registry import formats

NAMES = sorted(name for name in formats() if not isinstance(any_format(name), Scheme))
# Quotients are rounded in single precision, once more when a zero point of up to 255 is added, and so are borders.
ROUNDING = 4 * 2.0**-24
ZERO_ROUNDING = 256 * 2.0**-24


def gaussian(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def distances(array, quantized):
    """How far each element is from its code's value, how far from the nearest by trying all, and what is rounding."""
    fmt, grid, shape = quantized.format, quantized.grid, split(array, quantized.axis, quantized.block).shape
    every = [fmt.values(np.full(shape, code, np.uint8), grid) for code in range(len(fmt.levels))]
    restored = np.stack([join(values, array.shape, quantized.axis) for values in every])
    step = join(np.broadcast_to(np.abs(grid.scale), shape), array.shape, quantized.axis)
    allowed = ROUNDING * np.abs(array) + ZERO_ROUNDING * step
    return np.abs(quantized.decode() - array), np.abs(restored - array).min(0), allowed


@pytest.mark.parametrize("name", NAMES)
def test_a_code_is_the_nearest_of_its_grid(name):
    x = gaussian(3, 21) * np.float32([[1], [100], [1e-3]])
    quantized = block_format(name).encode(x, 1, 8)
    found, best, allowed = distances(x, quantized)
    assert (found <= best + allowed).all()
    np.testing.assert_array_equal(quantized.decode(), block_format(name).round_trip(x, 1, 8))
    # Negative control: the code beside it is not the nearest.
    beside = np.where(quantized.codes > 0, quantized.codes - 1, 1).astype(np.uint8)
    other = Quantized(quantized.format, beside, quantized.scale, quantized.zero, 1, quantized.block, quantized.base)
    found, best, allowed = distances(x, other)
    assert not (found <= best + allowed).all()


@given(
    x=arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=9), elements=st.floats(-1e6, 1e6, width=32)),
    name=st.sampled_from(["int2", "uint3", "int8", "bfp4", "mxfp4", "nvfp4", "nf4", "fp8-e5m2"]),
    block=st.integers(0, 10),
    axis=st.integers(-1, 2),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_array_its_codes_are_the_nearest(x, name, block, axis):
    axis = None if axis < 0 else axis % x.ndim
    quantized = block_format(name).encode(x, axis, block)
    assert quantized.codes.shape == x.shape
    found, best, allowed = distances(x, quantized)
    assert (found <= best + allowed).all()


@given(
    codes=arrays.arrays(np.uint8, arrays.array_shapes(max_dims=3, max_side=11), elements=st.integers(0, 255)),
    bits=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_unpacking_undoes_packing(codes, bits):
    codes = codes & np.uint8(2**bits - 1)
    count = codes.shape[-1]
    packed = to_planes(codes, bits)
    np.testing.assert_array_equal(from_planes(packed, bits, count), codes)
    for width, plane in zip(planes(bits), packed, strict=True):
        assert plane.shape == (*codes.shape[:-1], -(-count * width // 8))
    if bits in (1, 2, 4, 8):
        np.testing.assert_array_equal(unpack(pack(codes, bits), bits, count), codes)


def test_the_first_code_is_in_the_low_bits():
    assert pack(np.array([1, 2, 3, 0], np.uint8), 2).tolist() == [0b00111001]
    assert pack(np.array([1, 2], np.uint8), 4).tolist() != pack(np.array([2, 1], np.uint8), 4).tolist()


def test_small_floats_are_those_of_their_types():
    import ml_dtypes

    x = gaussian(1, 64)
    quantized = block_format("fp8-e4m3").encode(x, 1, 0)
    steps = x / quantized.scale[0]
    wanted = steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * quantized.scale[0]
    np.testing.assert_allclose(quantized.decode(), wanted, rtol=1e-6)
    assert len(block_format("mxfp6-e3m2").levels) == 63  # zero has two codes
    assert block_format("mxfp4").levels.tolist()[8:] == [0.5, 1, 1.5, 2, 3, 4, 6]


def test_normal_float_is_that_of_qlora():
    known = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
    known += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
    np.testing.assert_allclose(block_format("nf4").levels, known, atol=5.1e-5)


def test_the_dynamic_map_halves_relative_error_and_raises_squared_error_on_gaussian_weights():
    x = gaussian(64, 2048)
    dynamic, linear = (block_format(name).round_trip(x, None, 2048) - x for name in ("dynamic8", "int8"))
    relative = [np.mean(np.abs(change[x != 0] / x[x != 0]).clip(0, 1)) for change in (dynamic, linear)]
    assert relative[0] < 0.6 * relative[1]
    assert np.square(dynamic).mean() > 1.5 * np.square(linear).mean()
    levels = block_format("dynamic8").levels
    assert (len(levels), levels.max(), levels.min()) == (256, 1.0, np.float32(-0.9929687500))


def test_scales_of_eight_bits_are_known_by_their_codes():
    x = gaussian(6, 64)
    for name in ("bfp4", "mxfp4", "nvfp4"):
        quantized = block_format(name).encode(x, 1, 16)
        known = quantized.format.scales(quantized.base)
        np.testing.assert_array_equal(known[quantized.scale_codes], quantized.scale)
    assert block_format("int4").encode(x, 1, 16).scale_codes is None


def test_bytes_are_those_of_packed_codes_and_scales():
    x = gaussian(4, 64)
    assert block_format("int4").encode(x, 1, 32).nbytes == 4 * 32 + 8 * 4
    assert block_format("uint3").encode(x, 1, 32).nbytes == 4 * 24 + 8 * 4 + 3
    assert block_format("nvfp4").encode(x, 1, 16).nbytes == 4 * 32 + 16


def test_a_smaller_block_is_nearer():
    x = gaussian(32, 256)
    for name in ("int4", "uint4", "nf4"):
        errors = [np.square(block_format(name).round_trip(x, 1, block) - x).sum() for block in (32, 128)]
        assert errors[0] < errors[1], name


def test_blocks_along_the_outputs_win_where_few_inputs_are_large():
    x = gaussian(128, 128)  # outputs by inputs
    spread = x * np.where(np.arange(128) % 32 == 5, 20, 1).astype(np.float32)
    fmt = block_format("int4")
    plain, large = (
        [np.square((fmt.round_trip(weights, axis, 32) - weights)[:, small]).sum() for axis in (1, 0)]
        for weights, small in ((x, slice(None)), (spread, np.arange(128) % 32 != 5))
    )
    assert large[1] < large[0] / 10  # what is small in the block of an outlier is lost
    assert plain[1] == pytest.approx(plain[0], rel=0.05)


def test_threads_do_the_same(monkeypatch):
    x = gaussian(64, 96)
    alone = block_format("uint4").encode(x, 1, 32)
    monkeypatch.setattr(blocks, "WORTH_THREADS", 0)
    monkeypatch.setattr(blocks, "PART", 256)
    together = block_format("uint4").encode(x, 1, 32)
    for field in ("codes", "scale", "zero"):
        np.testing.assert_array_equal(getattr(alone, field), getattr(together, field))


def test_scales_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="scales of shape"):
        Quantized(block_format("int4"), np.zeros((2, 8), np.uint8), np.ones((2, 3, 1), np.float32), None, 1, 4)


def test_a_codebook_of_your_own_is_a_format():
    ternary = Codebook("ternary", 2, 32, table=(-1.0, 0.0, 1.0))
    assert ternary.round_trip(np.float32([[3, -3, 1, 2]]), 1, 4).tolist() == [[3, -3, 0, 3]]
