"""Blocks along inputs or outputs, chosen layer by layer by what the block around a layer makes of its error."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.fitting.layers import layers
from bevel.passes.fitting.moments import visits
from bevel.passes.quantization import axes
from bevel.passes.quantize_blocks import QuantizeBlocks
from bevel.testing import check_pass
from tests.graphs import graph

# Two residual blocks: one whose input has channels that are large, and one whose input has not.
STREAM = """
net (float[n, 64] x) => (float[n, 64] y) {
  h = MatMul (x, spread)
  r = Relu (h)
  d = MatMul (r, back)
  s = Add (x, d)
  h2 = MatMul (s, plain)
  r2 = Relu (h2)
  d2 = MatMul (r2, back2)
  y = Add (s, d2)
}
"""
SIZES = {"spread": (64, 96), "back": (96, 64), "plain": (64, 96), "back2": (96, 64)}
LARGE = np.arange(64) % 16 == 3


def stream() -> ir.Model:
    """Give the rows of `spread` that read the large channels large weights too."""
    model = graph(STREAM, SIZES)
    for name, factor in {"spread": np.where(LARGE, 20, 1)[:, None], "back": 0.01, "back2": 0.1}.items():
        array = model.graph.initializers[name].const_value.numpy() * np.float32(factor)
        model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    return model


def samples(rows=64):
    rng = np.random.default_rng(5)
    return [{"x": (rng.standard_normal((rows, 64)) * np.where(LARGE, 0.02, 1)).astype(np.float32)} for _ in range(4)]


def quantized(axis, **options):
    model = stream()
    spec = QuantizeBlocks(format="int3", axis=axis, emit="portable", **options)
    report = bevel.optimize(model, spec, calibration=samples())
    return model, report


def error(model):
    before, after, total = stream(), model, 0.0
    with Session(before) as one, Session(after) as other:
        for feed in samples():
            total += float(np.square(one.run(feed)["y"] - other.run(feed)["y"]).sum())
    return total


def along_outputs(report):
    note = next(note for note in report.steps[0].notes if "along the outputs" in note)
    return set(note.split(": ")[1].split(", "))


def test_blocks_run_along_the_outputs_only_where_some_inputs_are_large():
    model, report = quantized("auto", only=("spread", "plain"))
    assert along_outputs(report) == {"spread"}
    assert "1 of 2" in " ".join(report.steps[0].notes)
    assert error(model) < 0.5 * error(quantized("in", only=("spread", "plain"))[0])
    assert error(model) <= 1.05 * error(quantized("out", only=("spread", "plain"))[0])


def test_the_choice_stays_whatever_the_rounding_and_the_limit():
    for options in ({"rounding": "gptq"}, {"branch": "lorc", "rank": 4}):
        model, report = quantized("auto", only=("spread", "plain"), **options)
        assert along_outputs(report) == {"spread"}
        assert model.graph.initializers["spread.scale"].const_value.numpy().shape == (64, 3, 1, 1)
        assert error(model) < error(quantized("auto", only=("spread", "plain"))[0])


def test_what_counts_is_the_block_around_a_layer(monkeypatch):
    seen = []
    real = axes._best
    monkeypatch.setattr(axes, "_best", lambda *args: seen.append((args[0].name, args[3].name)) or real(*args))
    quantized("auto")
    assert seen == [("spread", "s"), ("back", "s"), ("plain", "y"), ("back2", "y")]
    monkeypatch.setattr(axes, "find_blocks", lambda model: type("None", (), {"innermost": ()}))
    seen.clear()
    quantized("auto")
    assert [end for _, end in seen] == ["h", "d", "h2", "d2"]


def test_without_data_a_choice_is_made_on_made_up_inputs():
    model = stream()
    report = bevel.optimize(model, "quantize-blocks{axis=auto format=int3 emit=portable}")
    assert report.steps[0].verdict.error > 0
    uniform = graph("net (float[n, 64] x) => (float[n, 32] y) { y = MatMul (x, w) }", {"w": (64, 32)})
    bevel.optimize(uniform, "quantize-blocks{axis=auto format=ptq161}")  # nothing to choose
    assert "w" not in uniform.graph.initializers


def test_a_walk_looks_ahead_and_stays_where_it_is():
    model = stream()
    context = Context(0, Calibration.of(samples(), model), Execution())
    layer = layers(model)[1]
    for _, walk in visits(model, [layer], context):
        (first, *_) = walk.ahead(model.graph.outputs[0])
        with Session(model) as session:
            expected = session.run(samples()[0])["y"]
        np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4)
        weight = layer.weight
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(2), name=weight.name)
        (second, *_) = walk.ahead(model.graph.outputs[0])
        assert not np.allclose(first, second)
        assert next(iter(walk.values(layer.data))).shape == (64, 96)


@pytest.mark.parametrize("spec", [{"axis": "auto", "format": "int3", "emit": "portable"}])
def test_the_pass_behaves(spec):
    check_pass(QuantizeBlocks(**spec), stream())


def test_a_layer_that_reads_constants_has_an_axis_too():
    text = """
    net (float[n, 64] x) => (float[n, 96] y) {
      places = Relu (table)
      embedded = MatMul (places, spread)
      h = MatMul (x, plain)
      y = Add (h, embedded)
    }
    """
    model = graph(text, {"table": (1, 64), "spread": (64, 96), "plain": (64, 96)})
    report = bevel.optimize(model, "quantize-blocks{axis=auto format=int3 emit=portable}")
    assert "2 of 2 have blocks along the outputs: spread, plain" in report.steps[0].notes
