"""Thin matrices beside quantized weights: they make up for what the papers say, and the graph computes just that."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.ir.cost import cost
from bevel.passes.factoring.leading import PRODUCTS, leading_factors
from bevel.passes.formats import block_format
from bevel.passes.quantization import encoding
from bevel.passes.quantization.repair import Member, repaired
from bevel.passes.quantize_blocks import QuantizeBlocks
from bevel.passes.rounding import leave_out_rounding
from bevel.testing import check_pass
from tests.graphs import graph, proto
from tests.passes.test_prune_weights import correlated

ATTENTION = """
net (float[n, 5, 64] x) => (float[n, 5, 48] y, float[n, 5, 48] k) {
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  s = Add (q, k)
  y = MatMul (s, wo)
}
"""
SIZES = {"wq": (64, 48), "wk": (64, 48), "wo": (48, 48)}
DENSE = "net (float[n, 64] x) => (float[n, 40] y) { h = Gemm <transB = 1> (x, w, b)  y = Relu (h) }"
TIED = "net (int64[n] ids) => (float[n, 60] y) { e = Gather (w, ids)  t = Transpose (w)  y = MatMul (e, t) }"
KERNELS = """
net (float[n, 16, 6, 6] x) => (float[n, 16, 6, 6] y) {
  h = Conv (x, w)
  r = Relu (h)
  y = ConvTranspose (r, v)
}
"""
WEIGHTS = {
    ATTENTION: SIZES,
    DENSE: {"w": (40, 64), "b": (40,)},
    TIED: {"w": (60, 64)},
    KERNELS: {"w": (24, 16, 3, 3), "v": (24, 16, 3, 3)},
}
# Sums of 64 products in another order, two layers deep.
ROUNDING = 3e-5


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outliers(inputs=256, outputs=192):
    """Weights `[in, out]` of which six inputs are ten times as large."""
    return gaussian(inputs, outputs) * np.where(np.arange(inputs) % 43 == 5, 10, 1).astype(np.float32)[:, None]


def member(weights, name="int4", block=64):
    fmt = block_format(name)
    return Member(weights, 0, lambda matrix: fmt.encode(matrix, 0, block))


def error(weights, kind, rank=16, second=None, seen=None):
    (found,) = repaired([member(weights)], kind, rank, second)
    lost = weights - found.decode()
    return float(np.linalg.norm(lost if seen is None else seen @ lost))


def run(model, feed):
    with Session(model) as session:
        return session.run(feed)


@pytest.mark.parametrize("shape", [(40, 30), (300, 200)])
def test_the_leading_factors_are_nearly_the_best(shape):
    matrix = gaussian(*shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    down, up = leading_factors(matrix, 4)
    best = np.sqrt(np.square(values[4:]).sum())
    assert best * 0.9999 <= np.linalg.norm(matrix - down @ up) <= best * 1.001
    np.testing.assert_allclose(np.linalg.norm(down, axis=0), np.linalg.norm(up, axis=1), rtol=1e-3)
    assert shape[0] < 100 or min(shape) > 12 * (PRODUCTS + 1)  # both ways are tried


def test_factors_in_the_metric_of_the_inputs_leave_the_least_of_the_output():
    x, weights = correlated(rows=300, width=64), gaussian(64, 48)
    root = np.linalg.cholesky(x.T @ x / 300 + 1e-3 * np.eye(64, dtype=np.float32))
    plain, seen = (weights - down @ up for down, up in (leading_factors(weights, 6, each) for each in (None, root)))
    assert np.linalg.norm(x @ seen) < 0.6 * np.linalg.norm(x @ plain)
    assert np.linalg.norm(plain) < np.linalg.norm(seen)


def test_taking_out_the_weight_first_beats_the_error_where_few_inputs_are_large():
    weights = outliers()
    nearest = np.linalg.norm(weights - block_format("int4").round_trip(weights, 0, 64))
    after, first = error(weights, "lorc"), error(weights, "svdquant")
    assert after < 0.9 * nearest
    assert first < 0.4 * after
    plain = gaussian(256, 192)  # without outliers there is little to take out
    assert error(plain, "svdquant") > 0.7 * error(plain, "lorc")


def test_fitting_codes_and_factors_to_each_other_helps_and_ends(monkeypatch):
    weights = outliers()
    often = error(weights, "svdquant")
    monkeypatch.setattr("bevel.passes.quantization.repair.TIMES", 1)
    assert often < error(weights, "svdquant")


def test_eight_directions_of_the_error_lower_that_of_the_output():
    x, weights = correlated(rows=300, width=64), gaussian(64, 48)
    second = (x.T @ x / len(x)).astype(np.float64)
    nearest = np.linalg.norm(x @ (weights - block_format("int4").round_trip(weights, 0, 64)))
    plain, seen = error(weights, "lorc", 8, seen=x), error(weights, "lorc", 8, second, seen=x)
    assert plain < nearest
    assert seen < 0.5 * plain
    assert error(weights, "svdquant", 8, second, seen=x) < plain


def test_siblings_share_the_first_factor():
    parts = [outliers()[:, :100], outliers()[:, 100:]]
    found = repaired([member(each) for each in parts], "svdquant", 8)
    assert found[0].down is found[1].down
    alone = [repaired([member(each)], "svdquant", 8)[0] for each in parts]
    together, apart = (
        sum(float(np.square(each - one.decode()).sum()) for each, one in zip(parts, some, strict=True))
        for some in (found, alone)
    )
    assert apart < together < 1.3 * apart


@pytest.mark.parametrize("text", list(WEIGHTS))
@pytest.mark.parametrize(
    "spec", [{"branch": "svdquant", "rank": 4}, {"branch": "lorc", "rank": 3, "emit": "portable", "format": "nf4"}]
)
def test_graphs_equal_what_was_found(text, spec, monkeypatch):
    found = {}
    real = encoding.stored
    monkeypatch.setattr(
        encoding,
        "stored",
        lambda form, each: found.update({form.target.name: each.decode()}) or real(form, each),
    )
    model, reference = graph(text, WEIGHTS[text]), graph(text, WEIGHTS[text])
    report = bevel.optimize(model, QuantizeBlocks(**spec))
    assert report.after.bytes == cost(model).bytes < report.before.bytes
    branches = [name for name in model.graph.initializers if name.endswith(".up")]
    assert bool(branches) == (text != TIED or spec["branch"] == "lorc")  # what two kernels share has no room for it
    for name, array in found.items():
        value = reference.graph.initializers[name]
        value.const_value = ir.tensor(array.reshape(value.const_value.shape.numpy()), name=name)
    leave_out_rounding(model)
    feed = {"ids": np.arange(9)} if text == TIED else {}
    if text != TIED:
        shape = [size if isinstance(size, int) else 3 for size in model.graph.inputs[0].shape]
        feed = {"x": gaussian(*shape, seed=2)}
    got, wanted = run(model, feed), run(reference, feed)
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=ROUNDING, atol=ROUNDING * np.abs(array).max())
    if branches:  # negative control
        value = model.graph.initializers[branches[0]]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float16(0.5), name=value.name)
        assert any(not np.allclose(array, wanted[name], rtol=1e-3) for name, array in run(model, feed).items())


def test_kernels_that_read_the_same_share_a_product():
    model = graph(ATTENTION, SIZES)
    report = bevel.optimize(model, "quantize-blocks{branch=svdquant rank=4}")
    assert {name for name in model.graph.initializers if name.endswith(".down")} == {"wq.down", "wo.down"}
    assert "3 have thin matrices beside them" in report.steps[0].notes[2]
    assert report.steps[0].notes[2].endswith("1 share the first of both with a sibling")
    # Codes of 4 bits, scales of 32 in blocks of 32, and 16 bits for each entry of the thin ones.
    wanted = sum(np.prod(size) * 5 // 8 for size in SIZES.values())
    thin = 2 * 4 * (64 + 48 + 48) + 2 * 4 * (48 + 48)
    padded = (64 - 48) * 48 * 5 // 8  # blocks of 32 do not divide 48 inputs
    assert report.after.bytes == wanted + padded + thin
    assert "lorc" not in str(report.steps[0])


def test_the_data_says_what_the_branch_makes_up_for():
    x = correlated(rows=300, width=64).reshape(60, 5, 64)
    errors = {}
    for spec in ("branch=lorc", "branch=lorc metric=inputs", "branch=svdquant metric=inputs rounding=gptq"):
        model, reference = graph(ATTENTION, SIZES), graph(ATTENTION, SIZES)
        bevel.optimize(model, f"quantize-blocks{{format=int3 {spec} rank=4 emit=portable}}", calibration=[{"x": x}])
        got, wanted = run(model, {"x": x})["y"], run(reference, {"x": x})["y"]
        errors[spec] = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    plain, inputs, both = errors.values()
    assert inputs < 0.7 * plain
    assert both < 0.7 * inputs


def test_what_would_cost_more_than_the_codes_stays_alone():
    model = graph(ATTENTION, SIZES)
    report = bevel.optimize(model, "quantize-blocks{branch=lorc rank=40}")
    assert not any(name.endswith(".up") for name in model.graph.initializers)
    assert "larger than they are: thin matrices of wq, wk, wo" in "\n".join(report.steps[0].notes)


def test_half_precision_takes_its_branch_in_half_precision():
    model = proto("net (float16[n, 64] x) => (float16[n, 48] y) { y = MatMul (x, w) }", {"w": (64, 48)})
    (weight,) = model.graph.initializer
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), "w"))
    errors = []
    for branch in ("none", "lorc"):
        loaded = bevel.load(model)
        errors.append(bevel.optimize(loaded, f"quantize-blocks{{format=int3 branch={branch} rank=4}}").error)
    assert errors[1] < errors[0]


@pytest.mark.parametrize("spec", [{"branch": "svdquant", "rank": 4, "metric": "inputs"}])
def test_the_pass_behaves(spec):
    check_pass(QuantizeBlocks(**spec), graph(ATTENTION, SIZES))
