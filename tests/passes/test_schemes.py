"""Formats of whole weights: what is stored comes back, is the nearest there is, and graphs decode just that."""

import io
import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bevel
from bevel.errors import UsageError
from bevel.ir.cost import cost
from bevel.passes.formats import Scheme, any_format, block_format
from bevel.passes.formats.pyramid import Pyramid, count, enumerated, nearest, points
from bevel.passes.formats.schemes import Numbers, coded, coded_sizes, decoded, digits
from bevel.passes.formats.vectors import Vectors
from bevel.passes.formats.vectors import nearest as nearest_word
from bevel.passes.quantization.targets import found
from bevel.passes.quantize_blocks import QuantizeBlocks
from bevel.registry import formats
from bevel.testing import check_pass
from tests.graphs import calls, graph, proto
from tests.passes.test_prune_weights import correlated
from tests.passes.test_quantize_blocks import DENSE, ROUNDING, TABLES, WEIGHTS, WORDS, feed, off, operators

NAMES = sorted(name for name in formats() if isinstance(any_format(name), Scheme))
KERNELS = "net (float[n, 4, 9, 9] x) => (float[n, 8, 9, 9] y) { h = Conv (x, w)  y = ConvTranspose (h, v) }"
SIZES = {DENSE: WEIGHTS, WORDS: TABLES, KERNELS: {"w": (24, 4, 3, 3), "v": (24, 8, 3, 3)}}


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(name, weights, strength=None, counted=None):
    lost = np.square(any_format(name).round_trip(weights, strength) - weights)
    return float(np.sum(lost if counted is None else lost * counted))


def test_there_are_formats_without_blocks():
    assert {"ptq161", "vq2", "lr2vq2", "pvq2", "pvq3", "pvq4"} <= set(NAMES)


@given(st.integers(1, 32), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_unpacking_undoes_packing(bits, many, seed):
    codes = np.random.default_rng(seed).integers(0, 2 ** min(bits, 31), many)
    tensors = coded("c", bits, codes)
    assert sum(width for width, _ in digits(bits)) == bits
    assert {name: (array.shape, array.dtype) for name, array in tensors.items()} == coded_sizes("c", bits, many)
    np.testing.assert_array_equal(decoded(Numbers(), tensors, "c", bits, many), codes[None])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, 24), (7, 13), (1, 3), (3, 1)])
def test_what_is_planned_is_stored_at_any_size(name, shape):
    scheme, weights = any_format(name), gaussian(*shape)
    tensors = scheme.encode(weights)
    assert {each: (array.shape, array.dtype) for each, array in tensors.items()} == scheme.sizes(*shape)
    restored = scheme.round_trip(weights)
    assert restored.shape == shape and restored.dtype == np.float32 and np.isfinite(restored).all()
    assert np.square(restored - weights).sum() < np.square(weights).sum()
    assert not scheme.round_trip(np.zeros(shape, np.float32)).any()
    np.testing.assert_allclose(scheme.round_trip(weights * 1e-20), restored * 1e-20, rtol=1e-3, atol=1e-24)


@pytest.mark.parametrize(("width", "pulses"), [(2, 5), (3, 4), (4, 5), (8, 3)])
def test_every_point_of_a_pyramid_has_a_number(width, pulses):
    many = count(width, pulses)
    every = points(Numbers(), np.arange(many, dtype=np.int32)[None], width, pulses, many)
    assert (np.abs(every).sum(1) == pulses).all()
    assert len(np.unique(every, axis=0)) == many
    np.testing.assert_array_equal(enumerated(every, pulses), np.arange(many))
    if width < 5:
        known = list(itertools.product(range(-pulses, pulses + 1), repeat=width))
        assert many == sum(sum(map(abs, each)) == pulses for each in known)


def test_a_point_is_about_the_nearest_direction():
    groups = gaussian(300, 4)
    many = count(4, 5)
    every = points(Numbers(), np.arange(many, dtype=np.int32)[None], 4, 5, many).astype(np.float64)
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    best = (groups @ every.T).max(1)
    chosen = nearest(groups, 5).astype(np.float64)
    match = (groups * chosen).sum(1) / np.linalg.norm(chosen, axis=1)
    assert (match <= best * (1 + 1e-6)).all()
    assert (match >= best * (1 - 1e-6)).mean() > 0.9 and (match / best).min() > 0.97
    rounded_down = np.floor(5 * np.abs(groups) / np.abs(groups).sum(1, keepdims=True)) * np.sign(groups)
    assert ((groups * rounded_down).sum(1) / np.maximum(np.linalg.norm(rounded_down, axis=1), 1) < match).mean() > 0.7


def test_directions_are_nearer_than_blocks_of_as_many_bits():
    weights = gaussian(64, 512)
    for name, other, block in (("pvq3", "int3", 128), ("pvq4", "int4", 128)):
        assert any_format(name).bits(64, 512) < block_format(other).bits(block) + 0.1
        lost = np.square(block_format(other).round_trip(weights, 1, block) - weights).sum()
        assert error(name, weights) < 0.8 * lost


def test_a_code_is_that_of_the_nearest_word():
    vectors, words, heavy = gaussian(70, 4), gaussian(16, 4, seed=1), np.abs(gaussian(70, 4, seed=2))
    every = (heavy[:, None] * np.square(vectors[:, None] - words)).sum(2)
    codes = nearest_word(vectors, words, heavy)
    np.testing.assert_allclose(every[np.arange(70), codes], every.min(1), rtol=1e-4)
    assert not np.array_equal(codes, every.argmax(1))
    scheme = any_format("vq2")
    weights = gaussian(32, 64)
    tensors = scheme.encode(weights)
    words = tensors["codewords"] @ tensors["basis"]
    pieces = (weights / tensors["scale"]).reshape(-1, 4)
    distances = np.square(pieces[:, None] - words).sum(2)
    (codes,) = decoded(Numbers(), tensors, "codes", 8, len(pieces))
    np.testing.assert_allclose(distances[np.arange(len(pieces)), codes], distances.min(1), rtol=1e-3, atol=1e-5)


def test_a_basis_of_low_rank_pays_only_where_few_directions_matter():
    flat = gaussian(32, 96)
    steep = (flat.reshape(-1, 4) * np.float32([1, 1, 1, 0.02])).reshape(32, 96)
    assert error("lr2vq2", flat) > 2 * error("vq2", flat)
    assert error("lr2vq2", steep) < 1.1 * error("vq2", steep)
    assert Vectors("v", rank=4).round_trip(flat).shape == flat.shape


def test_errors_of_inputs_with_more_energy_count_more():
    weights, strength = gaussian(40, 120), np.random.default_rng(1).lognormal(0, 1.5, 120).astype(np.float32)
    for name in ("ptq161", "vq2", "lr2vq1"):
        assert error(name, weights, strength, strength) < 0.8 * error(name, weights, None, strength)


def test_a_fifth_of_the_inputs_is_protected():
    weights, strength = gaussian(60, 100), np.ones(100, np.float32)
    strength[10:30] = 50
    change = np.square(any_format("ptq161").round_trip(weights, strength) - weights).mean(0)
    assert change[10:30].max() < 0.05 < change[:10].min()
    rows = gaussian(60, 1) * np.sign(gaussian(60, 100, seed=4)) * np.abs(gaussian(1, 100, seed=5))
    assert error("ptq161", rows.astype(np.float32)) < 0.01 * np.square(rows).sum()  # scales of rows and columns
    assert any_format("ptq161").bits(4096, 4096) == pytest.approx(1.6, abs=0.06)


@pytest.mark.parametrize("name", ["ptq161", "lr2vq2", "pvq2"])
@pytest.mark.parametrize("text", [DENSE, WORDS, KERNELS])
def test_graphs_equal_numpy(name, text):
    model = graph(text, SIZES[text])
    report = bevel.optimize(model, f"quantize-blocks{{format={name} emit=portable}}")
    assert not any(node.domain for node in model.graph)
    assert report.after.bytes == cost(model).bytes
    kept = {value.name for value in model.graph.initializers.values() if value.name.split(".")[0] in SIZES[text]}
    shared = [value for name, value in model.graph.initializers.items() if name not in kept]
    assert all(value.const_value.nbytes <= 256 * 8 * 4 for value in shared)  # tables of bytes, not of weights
    reference = graph(text, SIZES[text])
    left = 0
    for target in found(reference, (), ())[0]:
        if target.name in model.graph.initializers:
            left += 1
            continue
        with target.reading() as matrix:
            weights = matrix if target.in_axis else matrix.T
            restored = any_format(name).round_trip(np.ascontiguousarray(weights))
        array = (restored if target.in_axis else restored.T).reshape(target.shape)
        target.weight.const_value = ir.tensor(np.ascontiguousarray(array), name=target.name)
    assert left < 2
    assert off(model, reference, text) < ROUNDING
    assert off(model, graph(text, SIZES[text]), text) > 0.05  # negative control


def test_they_are_for_files_alone_and_their_bytes_are_those_of_the_file():
    model = graph(DENSE, WEIGHTS)
    report = bevel.optimize(model, "quantize-blocks{format=ptq161}")
    assert "MatMulNBits" not in operators(model)
    notes = "\n".join(report.steps[0].notes)
    assert "floats again when loaded, ptq161 is for files alone: first, second, third" in notes
    stream = io.BytesIO()
    bevel.save(model, stream)
    tensors = onnx.load_from_string(stream.getvalue()).graph.initializer
    assert report.after.bytes == sum(len(each.raw_data) for each in tensors)
    again = bevel.load(onnx.load_from_string(stream.getvalue()))
    assert off(again, model, DENSE) == 0


@pytest.mark.parametrize("name", ["pvq2", "ptq161", "kmeans3"])
def test_no_codes_are_taken_for_shapes_when_a_model_is_loaded(name):
    counts = []
    for width in (40, 160):
        model = graph(f"net (float[n, 40] x) => (float[n, {width}] y) {{ y = MatMul (x, w) }}", {"w": (40, width)})
        bevel.optimize(model, f"quantize-blocks{{format={name}}}", verify=False)
        assert "w" not in model.graph.initializers
        stream = io.BytesIO()
        bevel.save(model, stream)
        proto = onnx.load_from_string(stream.getvalue())
        counts.append(calls(lambda proto=proto: bevel.load(proto)))
    assert counts[1] < 1.1 * counts[0]


def test_the_data_says_which_inputs_matter():
    x = correlated(width=64) * np.where(np.arange(64) % 5 == 0, 10, 0.1).astype(np.float32)
    text, errors = "net (float[n, 64] x) => (float[n, 80] y) { y = MatMul (x, w) }", []
    for metric in ("weights", "inputs"):
        model = graph(text, {"w": (64, 80)})
        spec = QuantizeBlocks(format="ptq161", metric=metric)
        errors.append(bevel.optimize(model, spec, calibration=[{"x": x}]).error)
    assert errors[1] < errors[0] / 3


def test_an_old_opset_keeps_its_floats():
    model = proto("net (float[n, 64] x) => (float[n, 32] y) { y = MatMul (x, w) }", {"w": (64, 32)})
    model.opset_import[0].version = 9
    model = bevel.load(model)
    report = bevel.optimize(model, "quantize-blocks{format=vq1}")
    assert operators(model) == ["MatMul"]
    assert "the opset cannot decode it: w" in "\n".join(report.steps[0].notes)


def test_what_needs_blocks_refuses_them():
    with pytest.raises(UsageError, match="'vq1' has no blocks"):
        bevel.optimize(graph(DENSE, WEIGHTS), "awq{format=vq1}")


def test_groups_of_your_own_are_a_format():
    assert Pyramid("mine", width=5, pulses=3).round_trip(gaussian(4, 11)).shape == (4, 11)


@pytest.mark.parametrize("spec", [{"format": "ptq161", "metric": "inputs"}])
def test_the_pass_behaves(spec):
    assert feed(DENSE)["x"].shape == (7, 48)
    check_pass(QuantizeBlocks(**spec), graph(DENSE, WEIGHTS))
