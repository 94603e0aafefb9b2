"""Formats: the grid of each, blocks of any size along any axis, and their names."""

import numpy as np
import pytest

from bevel.errors import UsageError
from bevel.passes.formats import any_format, block_format
from bevel.passes.formats.blocks import PART, join, parts, split
from bevel.registry import formats


def sample(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "uint2", "uint4", "uint8"])
def test_an_error_is_at_most_half_a_step_where_nothing_is_clipped(name):
    x, bits = sample(8, 96), int(name[-1])
    change = np.abs(block_format(name).round_trip(x, 1, 32) - x).reshape(8, 3, 32)
    span = np.abs(x.reshape(8, 3, 32))
    # Symmetric codes end one step before the magnitude that they start at.
    step = span.max(-1, keepdims=True) / 2 ** (bits - 1) if name.startswith("int") else None
    if step is None:
        blocks = x.reshape(8, 3, 32)
        high = np.maximum(blocks.max(-1, keepdims=True), 0) - np.minimum(blocks.min(-1, keepdims=True), 0)
        step = high / (2**bits - 1)
    assert (change <= step * 1.001).all()
    assert (change <= step * 0.501).mean() > (0.75 if bits == 2 else 0.97)
    assert not (change <= step * 0.4).all()


def test_block_floating_point_is_the_grid_of_powers_of_two():
    x = np.array([[1.9, -1.0, 0.26, 0.0], [0.4, 0.1, -0.05, 0.3]], np.float32)
    # 4 bits: the exponent of 1.9 is 0, so steps are 1/4, up to 7/4; that of 0.4 is -2, so they are 1/16.
    wanted = [[1.75, -1.0, 0.25, 0.0], [0.375, 0.125, -0.0625, 0.3125]]
    assert block_format("bfp4").round_trip(x, 1, 4).tolist() == wanted
    assert block_format("bfp4").round_trip(x, None, 0).tolist() != wanted


def test_symmetric_integers_use_every_code():
    x = np.array([-4, -3, -2, -1, 0, 1, 2, 3], np.float32)
    assert block_format("int3").round_trip(x, 0, 8).tolist() == x.tolist()
    assert block_format("int3").round_trip(-x, 0, 8).tolist() == (-x).tolist()
    assert block_format("int2").round_trip(x, 0, 8).tolist() != x.tolist()


def test_a_zero_point_pays_where_elements_have_one_sign():
    x = np.abs(sample(4, 64))
    error = {name: np.square(block_format(name).round_trip(x, 1, 32) - x).sum() for name in ("int4", "uint4")}
    assert error["uint4"] < error["int4"] / 2


@pytest.mark.parametrize("name", ["int4", "uint3", "bfp5"])
def test_what_is_on_the_grid_stays(name):
    once = block_format(name).round_trip(sample(3, 40), 1, 16)
    np.testing.assert_allclose(block_format(name).round_trip(once, 1, 16), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(5,), (7, 9), (3, 4, 5)])
@pytest.mark.parametrize("block", [0, 1, 2, 4, 100])
def test_blocks_may_have_any_size_along_any_axis(shape, block):
    x, fmt = sample(*shape), block_format("int4")
    for axis in range(len(shape)):
        # The same as cutting the array by hand, the last block short.
        size = min(block or shape[axis], shape[axis])
        cuts = np.split(x, range(size, shape[axis], size), axis)
        wanted = np.concatenate([fmt.round_trip(cut, axis, 0) for cut in cuts], axis)
        np.testing.assert_array_equal(fmt.round_trip(x, axis, block), wanted)
        np.testing.assert_array_equal(fmt.round_trip(x, axis - len(shape), block), wanted)
        np.testing.assert_array_equal(join(split(x, axis, block), shape, axis), x)
    np.testing.assert_array_equal(
        fmt.round_trip(x, None, block), fmt.round_trip(x.reshape(-1), 0, block).reshape(shape)
    )


@pytest.mark.parametrize("shape", [(7, 9), (3, 20), (20, 3), (1, 1), (8, 8)])
@pytest.mark.parametrize("block", [0, 1, 3, 4, 9])
def test_tiles_are_as_if_cut_by_hand(shape, block):
    x, fmt = sample(*shape), block_format("uint3")
    np.testing.assert_array_equal(join(split(x, "both", block), shape, "both"), x)
    size = block or max(shape)
    rows = [np.split(row, range(size, shape[1], size), 1) for row in np.split(x, range(size, shape[0], size), 0)]
    wanted = np.block([[fmt.round_trip(tile, None, 0) for tile in row] for row in rows])
    found = fmt.encode(x, "both", block)
    np.testing.assert_array_equal(found.decode(), wanted)
    np.testing.assert_array_equal(fmt.round_trip(x, "both", block), wanted)
    assert found.scale.shape == (len(rows), len(rows[0]), 1)
    with pytest.raises(UsageError, match="no tiles"):
        fmt.encode(x[0], "both", block)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 5, 7, PART), (PART, 2, 3, 1), (1, 2, 2 * PART, 2), (0, 1, 4, 2)])
def test_parts_cover_every_block_once(shape):
    seen = np.zeros(shape, np.int8)
    for part in parts(shape):
        seen[part] += 1
    assert (seen == 1).all()


def test_zeros_stay_zeros_and_nothing_is_no_number():
    for name in ("int4", "uint4", "bfp4"):
        assert not block_format(name).round_trip(np.zeros((2, 8), np.float32), 1, 4).any()
        tiny = np.full((1, 8), 1e-45, np.float32)
        assert np.isfinite(block_format(name).round_trip(tiny, 1, 4)).all()


def test_bits_count_scales_and_zero_points():
    assert block_format("int4").bits(32) == 5
    assert block_format("uint4").bits(32) == 5.125
    assert block_format("bfp4").bits(32) == 4.25
    assert block_format("int8").bits(0) == 8


def test_names_come_from_the_registry():
    assert {"int2", "int8", "uint4", "bfp3", "bfp8"} <= set(formats())
    assert all(any_format(name).name == name for name in formats())
    with pytest.raises(UsageError, match="did you mean 'int4'"):
        block_format("imt4")
    with pytest.raises(UsageError, match="'pvq2' has no blocks"):
        block_format("pvq2")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="no axis 2"):
        block_format("int4").round_trip(sample(2, 2), 2, 4)
    with pytest.raises(UsageError, match="-1 entries"):
        block_format("int4").round_trip(sample(2, 2), 1, -1)
