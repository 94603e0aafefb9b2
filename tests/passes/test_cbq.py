"""Codes of the weights of two blocks that are chosen together."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.backends import optional
from bevel.backends.onnxruntime import Session
from bevel.backends.torch import rounding
from bevel.errors import UsageError
from bevel.passes.execution import Execution
from bevel.passes.formats import block_format
from bevel.passes.quantization import adaround, cbq
from bevel.passes.quantization.ledger import Entry
from bevel.passes.quantization.tables import Tabled
from bevel.passes.quantization.targets import found
from bevel.passes.quantize_blocks import QuantizeBlocks
from tests.graphs import graph
from tests.passes.test_prune_weights import correlated

TWO = """
two (float[n, 24] x) => (float[n, 24] y) {
  a = MatMul (x, up0)  b = Relu (a)  c = MatMul (b, down0)  h = Add (x, c)
  t = Transpose (up1)  d = MatMul (h, t)  e = Relu (d)  f = MatMul (e, down1)  y = Add (h, f)
}
"""
SIZES = {"up0": (24, 32), "down0": (32, 24), "up1": (32, 24), "down1": (32, 24)}
ROWS = 96


@pytest.fixture(scope="module")
def feeds():
    x = correlated(rows=ROWS, width=24)
    return [{"x": x[start : start + 16]} for start in range(0, ROWS, 16)]


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    monkeypatch.setattr(rounding, "STEPS", 30)
    monkeypatch.setattr(adaround, "STEPS", 30)


def quantized(feeds, method, text=TWO, sizes=SIZES, **options):
    """The model, its report, and the relative error of its output."""
    model = graph(text, sizes)
    wanted = outputs(model, feeds)
    step = QuantizeBlocks(**{"format": "uint2", "block": 8, "emit": "portable", "rounding": method, **options})
    report = bevel.optimize(model, step, calibration=feeds, verify=False)
    return model, report, np.linalg.norm(outputs(model, feeds) - wanted) / np.linalg.norm(wanted)


def outputs(model, feeds):
    with Session(model) as session:
        return np.concatenate([session.run(feed)["y"] for feed in feeds]).astype(np.float64)


def content(model):
    return {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}


def layer_by_layer(feeds, monkeypatch):
    """What `quantized` gives where there are no windows."""
    with monkeypatch.context() as without:
        without.setattr(cbq, "windows", lambda *_: [])
        return quantized(feeds, "cbq")


def windows_note(report):
    (note,) = (note for note in report.steps[0].notes if "window" in note or "residual" in note)
    return note


def test_two_blocks_err_less_together_than_layer_by_layer(feeds, monkeypatch):
    errors = {method: quantized(feeds, method)[2] for method in ("nearest", "gptq")}
    errors["alone"] = layer_by_layer(feeds, monkeypatch)[2]
    _, report, errors["cbq"] = quantized(feeds, "cbq")
    assert errors["alone"] < errors["gptq"] < errors["nearest"]
    assert errors["cbq"] < 0.95 * errors["alone"]
    first, last = (f"{errors[method]:.2g}" for method in ("alone", "cbq"))
    assert f"error of a window's output {first} before, {last} now" in windows_note(report)
    assert "4 weights in 1 windows of residual blocks, 1 better" in windows_note(report)


def test_without_steps_codes_stay(feeds, monkeypatch):
    monkeypatch.setattr(rounding, "STEPS", 0)
    model, report, _ = quantized(feeds, "cbq")
    assert ", 0 better" in windows_note(report)
    assert content(model) == content(layer_by_layer(feeds, monkeypatch)[0])


def test_what_errs_more_is_not_taken(feeds, monkeypatch):
    monkeypatch.setattr(rounding, "STEPS", 3)

    def worse(*given):
        chosen, before, _ = rounding.rounded(*given)
        return {name: (~upper, growth) for name, (upper, growth) in chosen.items()}, before, before * 1.01

    monkeypatch.setattr(Execution, "rounding", lambda _: worse)
    model, report, _ = quantized(feeds, "cbq")
    assert ", 0 better" in windows_note(report)
    assert content(model) == content(layer_by_layer(feeds, monkeypatch)[0])


def test_the_same_seed_gives_the_same_codes(feeds, monkeypatch):
    monkeypatch.setattr(rounding, "STEPS", 3)
    first, second = (content(quantized(feeds, "cbq")[0]) for _ in range(2))
    assert first == second


def test_what_stands_beside_codes_stays(feeds):
    _, report, error = quantized(feeds, "cbq", branch="svdquant", rank=2)
    assert "1 better" in windows_note(report)
    assert f"{error:.2g} now" in windows_note(report)


def test_windows_overlap_by_a_block():
    text = """
    three (float[n, 24] x) => (float[n, 24] y) {
      a = MatMul (x, up0)  b = Relu (a)  c = MatMul (b, down0)  h = Add (x, c)
      d = MatMul (h, w1)  i = Add (h, d)  e = MatMul (i, w2)  j = Add (i, e)  y = MatMul (j, head)
    }
    """
    sizes = {"up0": (24, 32), "down0": (32, 24)} | dict.fromkeys(("w1", "w2", "head"), (24, 24))
    model = graph(text, sizes)
    targets, _ = found(model, (), ())
    entries = [Entry(Tabled(target, block_format("int4"), 0, 8, tables={}), "") for target in targets]
    each = cbq.windows(model, entries)
    assert [[entry.name for entry in window.entries] for window in each] == [["up0", "down0", "w1"], ["w1", "w2"]]
    assert [window.end.name for window in each] == ["i", "j"]
    assert [window.end.name for window in cbq.windows(model, entries[:1])] == ["h"]
    assert cbq.windows(model, entries[-1:]) == []


def test_what_has_no_blocks_stays(feeds):
    text, sizes = "one (float[n, 24] x) => (float[n, 24] y) { y = MatMul (x, w) }", {"w": (24, 24)}
    _, report, error = quantized(feeds, "cbq", text, sizes)
    assert windows_note(report) == "no residual block has weights for cbq: all are chosen layer by layer"
    assert error <= quantized(feeds, "gptq", text, sizes)[2]


def test_a_window_that_torch_cannot_run_stays_and_is_said(feeds):
    text = """
    two (float[n, 24] x) => (float[n, 24] y) {
      a = MatMul (x, up0)  b = Relu (a)  c = MatMul (b, down0)  h = Add (x, c)
      s = Constant <value = float {0.01}> ()
      q = QuantizeLinear (h, s)  r = DequantizeLinear (q, s)  f = MatMul (r, w)  y = Add (h, f)
    }
    """
    sizes = {"up0": (24, 32), "down0": (32, 24), "w": (24, 24)}
    _, report, _ = quantized(feeds, "cbq", text, sizes)
    assert "1 windows stay as layer by layer, torch cannot run them: " in windows_note(report)
    assert "gradients do not pass what is quantized" in windows_note(report)


def test_without_torch_it_says_what_to_install(feeds, monkeypatch):
    def absent(_):
        raise ModuleNotFoundError("no torch", name="torch")

    monkeypatch.setattr(optional, "import_module", absent)
    with pytest.raises(UsageError, match=r"torch is not installed.*\n.*bevel\[torch\]"):
        quantized(feeds, "cbq")


@pytest.mark.parametrize("name", ["uint3", "int4", "nf4", "mxfp4"])
@pytest.mark.parametrize("axis", [0, 1, None, "both"])
def test_what_is_taken_first_are_the_codes_there_are(name, axis):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((10, 14)).astype(np.float32)
    coded = block_format(name).encode(matrix, axis, 4)
    (target,) = found(graph("m (float[n, 10] x) => (float[n, 14] y) { y = MatMul (x, w) }", {"w": (10, 14)}), (), ())[0]
    target.weight.const_value = ir.tensor(matrix, name="w")
    doubt = cbq.doubts(Entry(Tabled(target, coded.format, axis, 4, tables={}), ""), coded)
    weight = rounding.Doubtful(**doubt.given)
    np.testing.assert_allclose(weight.value().detach().numpy(), coded.decode(), rtol=1e-6)
    same = doubt.settled(*weight.taken())
    np.testing.assert_array_equal(same.codes, coded.codes)
    np.testing.assert_array_equal(same.scale, coded.scale)
    other = doubt.settled(~weight.taken()[0], weight.taken()[1])
    step = np.abs(other.codes.astype(int) - coded.codes)
    assert step.min() == step.max() == 1
    assert (weight.growth.numel() > 0) == (name != "mxfp4" and axis != "both")
