"""quantize-blocks: what is stored is what numpy says, in every form; what cannot be stored stays; notes are true."""

import io
import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from bevel.errors import PromiseBroken, UsageError
from bevel.ir.cost import cost
from bevel.passes import quantize_blocks
from bevel.passes.fitting.layers import layers
from bevel.passes.formats import Grid, block_format
from bevel.passes.quantization import adaround, encoding
from bevel.passes.quantization.kernels import kernel
from bevel.passes.quantization.targets import found
from bevel.passes.quantize_blocks import QuantizeBlocks
from bevel.passes.rounding import leave_out_rounding
from bevel.testing import check_pass
from tests.graphs import graph, proto
from tests.passes.test_prune_weights import CONVOLUTIONS, KERNELS, correlated

DENSE = """
dense (float[n, 48] x) => (float[n, 20] y) {
  h = MatMul (x, first)
  r = Relu (h)
  g = Gemm <transB = 1> (r, second, bias)
  s = Relu (g)
  t = Transpose (third)
  y = MatMul (s, t)
}
"""
WEIGHTS = {"first": (48, 64), "second": (50, 64), "bias": (50,), "third": (20, 50)}
WORDS = """
words (int64[n, k] ids) => (float[n, k, 24] y) {
  e = Gather (table, ids)
  y = MatMul (e, head)
}
"""
TABLES = {"table": (40, 64), "head": (64, 24)}
# Sums of 64 products in another order, two layers deep.
ROUNDING = 2e-5


def quantized(text, weights, spec, **options):
    model = graph(text, weights)
    report = bevel.optimize(model, QuantizeBlocks(**spec), **options)
    return model, report


def operators(model):
    return [node.op_type for node in model.graph]


def run(model, feed, level=Level.AS_DEPLOYED):
    with Session(model, level=level) as session:
        return next(iter(session.run(feed).values()))


def rounded_in_numpy(text, weights, name, axis, block):
    """The float model with every weight as numpy says that it is after quantization."""
    model = graph(text, weights)
    for target in found(model, (), ())[0]:
        with target.reading() as matrix:
            matrix = block_format(name).round_trip(matrix, target.axis(axis), block)
        target.weight.const_value = ir.tensor(matrix.reshape(target.shape), name=target.name)
    return model


def feed(text, seed=1):
    rng = np.random.default_rng(seed)
    if text in (WORDS, TIED):
        return {"ids": rng.integers(0, 40, (3, 5))}
    return {"x": rng.standard_normal((7, 48) if text == DENSE else (2, 4, 9, 9)).astype(np.float32)}


def off(model, reference, text):
    wanted = run(reference, feed(text))
    return np.abs(run(model, feed(text)) - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "axis", "block"),
    [
        ("int4", "in", 32),
        ("uint4", "in", 0),
        ("uint3", "in", 20),
        ("int4", "out", 7),
        ("nf4", "flat", 100),
        ("uint4", "both", 7),
        ("mxfp4", "in", 32),
        ("nvfp4", "in", 16),
        ("mxfp6-e3m2", "in", 32),
    ],
)
@pytest.mark.parametrize(("text", "weights"), [(DENSE, WEIGHTS), (CONVOLUTIONS, KERNELS), (WORDS, TABLES)])
def test_portable_models_equal_numpy(text, weights, name, axis, block):
    model, _ = quantized(text, weights, {"format": name, "axis": axis, "block": block, "emit": "portable"})
    assert not any(node.domain for node in model.graph)
    reference = rounded_in_numpy(text, weights, name, axis, block)
    assert run(model, feed(text), Level.AS_WRITTEN) == pytest.approx(
        run(reference, feed(text), Level.AS_WRITTEN), rel=ROUNDING, abs=ROUNDING * 100
    )
    other = rounded_in_numpy(text, weights, name, "in" if axis == "flat" else "flat", block)
    assert off(model, other, text) > ROUNDING  # negative control


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("int4", 32),
        ("uint4", 16),
        ("uint8", 0),
        ("int2", 16),
        ("uint2", 256),
        ("uint3", 64),
        ("bfp4", 32),
        ("mxfp4", 32),
        ("nvfp4", 16),
    ],
)
@pytest.mark.parametrize("layout", ["MatMul (x, w)", "Gemm <transB = 1> (x, v, b)"])
def test_kernels_equal_numpy_but_for_activations_of_eight_bits(name, block, layout):
    text = f"net (float[n, 70] x) => (float[n, 33] y) {{ y = {layout} }}"
    weights = {"w": (70, 33)} if "w" in layout else {"v": (33, 70), "b": (33,)}
    model, _ = quantized(text, weights, {"format": name, "block": block})
    assert "MatMulNBits" in operators(model)
    x = np.random.default_rng(2).standard_normal((9, 70)).astype(np.float32)
    reference = rounded_in_numpy(text, weights, name, "in", block)
    (layer,) = layers(reference)
    weight = layer.content()[0]
    size = next(node for node in model.graph).attributes.get_int("block_size")
    blocks = [slice(start, start + size) for start in range(0, 70, size)]
    # Each activation moves by at most half a step of its block, whose 127 steps reach its largest magnitude.
    step = [np.abs(x[:, part]).max(1, keepdims=True) / 254 for part in blocks]
    bound = sum(each * np.abs(weight[:, part]).sum(1) for each, part in zip(step, blocks, strict=True))
    change = np.abs(run(model, {"x": x}) - run(reference, {"x": x}))
    assert (change <= bound * 1.01 + ROUNDING).all()
    assert change.max() > ROUNDING  # the kernel does round activations
    assert not (change <= bound / 50).all()
    assert leave_out_rounding(model) == 1  # and rounds nothing else
    assert run(model, {"x": x}) == pytest.approx(run(reference, {"x": x}), rel=ROUNDING, abs=ROUNDING * 10)


@pytest.mark.parametrize(("name", "block"), [("int4", 32), ("uint4", 16), ("int8", 0), ("uint2", 32), ("mxfp4", 32)])
def test_rows_of_a_table_are_exact(name, block):
    model, _ = quantized(WORDS, TABLES, {"format": name, "block": block, "skip": ("head",)})
    assert operators(model) == ["GatherBlockQuantized", "MatMul"]
    text = WORDS
    reference = graph(text, TABLES)
    (target,) = found(reference, ("table",), ())[0]
    with target.reading() as matrix:
        matrix = block_format(name).round_trip(matrix, 1, block)
    target.weight.const_value = ir.tensor(matrix, name="table")
    assert off(model, reference, text) < ROUNDING


def test_what_no_kernel_has_is_said_by_name():
    _, report = quantized(CONVOLUTIONS, KERNELS, {"format": "int8", "block": 16, "skip": ("last",)})
    notes = "\n".join(report.steps[0].notes)
    assert "floats again when loaded, no kernel for Conv: plain, " in notes
    assert "no kernel for ConvTranspose: transposed" in notes
    _, report = quantized(DENSE, WEIGHTS, {"block": 24})
    assert "no kernel has blocks of 24: first, second, third" in "\n".join(report.steps[0].notes)
    _, report = quantized(DENSE, WEIGHTS, {"block": 1})
    assert report.steps[0].notes[1] == "left alone, it would not become smaller: first, second, third"


def test_bytes_are_those_of_the_file():
    model, report = quantized(DENSE, WEIGHTS, {"format": "uint4", "block": 16})
    stream = io.BytesIO()
    bevel.save(model, stream)
    again = bevel.load(onnx.load_from_string(stream.getvalue()))
    tensors = sum(len(each.raw_data) for each in onnx.load_from_string(stream.getvalue()).graph.initializer)
    assert report.after.bytes == cost(again).bytes == tensors
    assert report.after.bytes < report.before.bytes / 4
    np.testing.assert_array_equal(run(again, feed(DENSE)), run(model, feed(DENSE)))
    assert bevel.optimize(again, "simplify").error == 0
    assert bevel.groups(again)


def test_what_is_planned_is_what_is_stored():
    for name in ("int4", "uint3", "nvfp4"):
        for emit in ("fast", "portable"):
            model, report = quantized(DENSE, WEIGHTS, {"format": name, "block": 16, "emit": emit})
            for value in model.graph.initializers.values():
                assert list(value.shape) == list(value.const_value.numpy().shape), value.name
            kept, rest = re.search(r"take (\S+) MB.*all others (\S+) MB", report.steps[0].notes[0]).groups()
            assert (float(kept) + float(rest)) * 1e6 == pytest.approx(report.after.bytes, rel=0.01)


def test_above_a_limit_weights_are_quantized_while_they_are_written(monkeypatch):
    text, weights = "net (float[n, 256] x) => (float[n, 80] y) { h = MatMul (x, a)  y = MatMul (h, b) }", {}
    weights |= {"a": (256, 256), "b": (256, 80)}
    spec = {"format": "uint8", "block": 16}
    kept, _ = quantized(text, weights, spec)
    monkeypatch.setattr(quantize_blocks, "KEPT", 0)
    reads = []
    late = encoding.Encoder.late
    monkeypatch.setattr(encoding.Encoder, "late", lambda step, target: reads.append(target.name) or late(step, target))
    streamed, _ = quantized(text, weights, spec, verify=False)
    assert not reads
    first, second = io.BytesIO(), io.BytesIO()
    bevel.save(kept, first)
    bevel.save(streamed, second)
    assert first.getvalue() == second.getvalue()
    assert reads == ["a", "b"]  # each once, though it has three tensors


def test_gptq_beats_what_does_not_look_at_the_data():
    x, text, weights = correlated(), "wide (float[n, 40] x) => (float[n, 30] y) { y = MatMul (x, w) }", {"w": (40, 30)}
    errors = {}
    for rounding in ("nearest", "clip", "gptq"):
        spec = {"format": "int3", "block": 20, "rounding": rounding, "emit": "portable"}
        model, _ = quantized(text, weights, spec, calibration=[{"x": x}])
        errors[rounding] = np.square(run(model, {"x": x}) - run(graph(text, weights), {"x": x})).sum()
    assert errors["clip"] < errors["nearest"]
    assert errors["gptq"] < errors["clip"] / 2


@pytest.mark.parametrize("name", ["uint2", "int3", "nf4"])
def test_learnt_rounding_beats_what_does_not_look_at_the_data(name):
    x, text, weights = correlated(), "wide (float[n, 40] x) => (float[n, 30] y) { y = MatMul (x, w) }", {"w": (40, 30)}
    errors = {}
    for rounding in ("clip", "adaround"):
        spec = {"format": name, "block": 20, "rounding": rounding, "emit": "portable"}
        model, report = quantized(text, weights, spec, calibration=[{"x": x}])
        wanted = run(graph(text, weights), {"x": x})
        errors[rounding] = np.linalg.norm(run(model, {"x": x}) - wanted) / np.linalg.norm(wanted)
    assert errors["adaround"] < errors["clip"] / 2
    assert f"{errors['adaround']:.2g} median" in report.steps[0].notes[-1]


def test_settled_codes_are_the_best_of_their_input():
    rng = np.random.default_rng(3)
    weights, x = rng.standard_normal((12, 5)).astype(np.float32), correlated(rows=60, width=12)
    moment, fmt = (x.T @ x)[None], block_format("uint3")
    grid = fmt.grid(weights[:, None, None, :].reshape(1, 1, 12, 5))
    scale, zero = (np.broadcast_to(each.reshape(1, 1, 5), (1, 12, 5)) for each in (grid.scale, grid.zero))
    whole = Grid(np.ascontiguousarray(scale), np.ascontiguousarray(zero))
    codes, error = adaround.adaptive(fmt, weights[None], whole, moment)

    def lost(codes):
        change = fmt.values(codes, whole[0]) - weights
        return float(np.vdot(change, moment[0] @ change) / np.vdot(weights, moment[0] @ weights))

    assert error == pytest.approx(lost(codes[0]), rel=1e-4)
    assert lost(fmt.codes(weights, whole[0])) > 2 * error
    for place, output in np.ndindex(12, 5):
        other = codes[0].copy()
        other[place, output] = max(int(other[place, output]) - 1, 0)
        assert lost(other) >= error * 0.98  # the codes were settled under a moment with a hundredth more


def test_searched_zero_points_lose_less():
    errors = {}
    for rounding in ("nearest", "clip", "hqq"):
        _, report = quantized(
            DENSE, WEIGHTS, {"format": "uint4", "block": 16, "rounding": rounding, "emit": "portable"}
        )
        errors[rounding] = float(report.steps[0].notes[-1].split(": ")[1].split()[0])
    assert errors["clip"] < errors["hqq"] < errors["nearest"]


def test_a_layer_learns_from_what_the_one_before_left(monkeypatch):
    seen = []
    real = encoding.compensating
    monkeypatch.setattr(encoding, "compensating", lambda *args: seen.append(args[5].second) or real(*args))
    x = {"x": correlated(width=48)}
    originals = graph(DENSE, WEIGHTS)
    for name in ("int8", "int2"):
        quantized(DENSE, WEIGHTS, {"format": name, "rounding": "gptq"}, calibration=[x])
    eight, two = seen[:3], seen[3:]
    np.testing.assert_array_equal(eight[0], two[0])
    assert not np.allclose(eight[1], two[1], rtol=1e-3)
    assert originals.graph.initializers["first"].const_value.numpy().shape == (48, 64)


def test_an_error_above_the_limit_names_the_worst_weights():
    model = graph(DENSE, WEIGHTS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(PromiseBroken, match=r"worst: (first|second|third) \(relative error 0\.") as broken:
        bevel.optimize(model, "quantize-blocks{format=int3}", max_error=0.01)
    assert broken.value.exit_code == 1
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    bevel.optimize(model, "quantize-blocks{format=int8}", max_error=0.05)


def test_what_must_not_change_stays():
    text = """
    net (float[64, 64] x, int64[64] places) => (float[n, 64] y, float[n, 64] z, float[n, 64] o) {
      a = MatMul (x, tied)
      b = Add (a, tied)
      c = MatMul (b, broken)
      angles = Gather (cosines, places)
      y = Mul (c, angles)
      z = MatMul (x, tiny)
      o = MatMul (x, plain)
    }
    """
    sizes = {"tied": (64, 64), "broken": (64, 64), "cosines": (80, 64), "tiny": (64, 64), "plain": (64, 64)}
    model = graph(text, sizes)
    array = model.graph.initializers["broken"].const_value.numpy().copy()
    array[3, 3] = np.inf
    model.graph.initializers["broken"].const_value = ir.tensor(array, name="broken")
    report = bevel.optimize(model, "quantize-blocks{skip=tin*}", verify=False)
    notes = "\n".join(report.steps[0].notes)
    assert "used by what cannot be given codes: tied" in notes
    assert "not finite: broken" in notes
    assert "as angles do: cosines" in notes
    assert {"tied", "broken", "cosines", "tiny"} <= set(model.graph.initializers)
    assert "plain" not in model.graph.initializers


TIED = """
tied (int64[n, k] ids) => (float[n, k, 40] y) {
  e = Gather (table, ids)
  h = MatMul (e, twice)
  g = MatMul (h, twice)
  t = Transpose (table)
  y = MatMul (g, t)
}
"""


@pytest.mark.parametrize("emit", ["fast", "portable"])
def test_what_several_nodes_read_is_stored_once(emit):
    sizes = {"table": (40, 64), "twice": (64, 64)}
    model, report = quantized(TIED, sizes, {"format": "uint4", "block": 32, "emit": emit})
    elements = 40 * 64 + 64 * 64
    assert report.after.bytes < elements * (4 + 36 / 32) / 8 + 3000
    if emit == "fast":
        assert operators(model) == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits", "Reshape", "MatMulNBits"]
    reference = rounded_in_numpy(TIED, sizes, "uint4", "in", 32)
    assert off(model, reference, TIED) < (0.02 if emit == "fast" else ROUNDING)
    assert off(model, graph(TIED, sizes), TIED) > 0.02
    stream = io.BytesIO()
    bevel.save(model, stream)
    again = bevel.load(onnx.load_from_string(stream.getvalue()))
    assert bevel.groups(again) is not None
    np.testing.assert_array_equal(run(again, feed(TIED)), run(model, feed(TIED)))


def test_an_embedding_before_a_norm_is_no_table_of_angles():
    text = """
    net (int64[n] ids) => (float[n, 64] y, float[n, 64] z) {
      e = Gather (table, ids)
      s = Mul (e, e)
      y = Mul (e, s)
      z = Add (e, y)
    }
    """
    model, _ = quantized(text, {"table": (40, 64)}, {})
    assert operators(model)[0] == "GatherBlockQuantized"


def test_the_opset_stays_and_says_what_can_be_written():
    def of(opset):
        model = proto("net (float[n, 64] x) => (float[n, 32] y) { y = MatMul (x, w) }", {"w": (64, 32)})
        model.opset_import[0].version = opset
        model = bevel.load(model)
        bevel.optimize(model, "quantize-blocks{emit=portable}")
        assert model.opset_imports[""] == opset
        return operators(model)

    assert of(21) == ["DequantizeLinear", "MatMul"]
    assert "Gather" in of(13)
    assert of(9) == ["MatMul"]


def test_half_precision_stays_half_precision():
    model = proto("net (float16[n, 64] x) => (float16[n, 32] y) { y = MatMul (x, w) }", {"w": (64, 32)})
    (weight,) = model.graph.initializer
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), "w"))
    model = bevel.load(model)
    report = bevel.optimize(model, "quantize-blocks{format=int8}")
    assert report.error < 0.02
    assert "Cast" in operators(model)


def test_kernels_take_only_blocks_they_are_fast_at():
    (target,) = found(graph("net (float[n, 512] x) => (float[n, 8] y) { y = MatMul (x, w) }", {"w": (512, 8)}), (), ())[
        0
    ]

    def form(name, block):
        made = kernel(target, block_format(name), 0, block)
        return made if isinstance(made, str) else (made.whole.bits, made.piece)

    assert form("int4", 32) == (4, 32)
    assert form("int2", 16) == (4, 16)  # 2 bits would be slow
    assert form("int2", 256) == (2, 128)
    assert form("int4", 0) == (4, 128)
    assert form("int4", 96) == (4, 32)
    assert form("mxfp4", 32) == (8, 32)
    assert form("int4", 24) == "no kernel has blocks of 24"
    assert form("nf4", 64) == "no kernel has the levels of nf4"


@pytest.mark.parametrize("spec", [{"format": "uint4"}, {"format": "nvfp4", "block": 16, "emit": "portable"}])
def test_a_quantized_model_becomes_a_module(spec):
    pytest.importorskip("torch")
    model, _ = quantized(TIED, {"table": (40, 64), "twice": (64, 64)}, spec)
    bevel.to_torch(model)  # verified


def test_what_moves_blocks_as_a_whole_keeps_its_promise():
    model, _ = quantized(DENSE, WEIGHTS, {"format": "int8", "skip": ("second", "third")})
    report = bevel.optimize(model, "reorder-channels")
    assert report.error < 0.02


def test_an_unknown_format_is_refused_at_once():
    with pytest.raises(UsageError, match="did you mean 'mxfp4'"):
        QuantizeBlocks(format="mxfp5")


@pytest.mark.parametrize("spec", [{"rounding": "gptq"}, {"emit": "portable", "format": "uint3", "rounding": "clip"}])
def test_the_pass_behaves(spec):
    check_pass(QuantizeBlocks(**spec), graph(DENSE, WEIGHTS))
