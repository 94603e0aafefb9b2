"""A rounding that falls the other way is told from a mistake; neither hides the other."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bevel.errors import PromiseBroken
from bevel.ir.edit import permute
from bevel.ir.groups import groups
from bevel.passes import verify as verifying
from bevel.passes.base import Exact, Lossy, Preserving
from bevel.passes.rounding import leave_out_rounding, unit
from bevel.passes.verify import Observation, compare, verify
from tests.graphs import graph

QUANTIZED = """
g (float[n, 32] x) => (float[n, 128] y) <float scale = {0.2}, uint8 zero = {128}> {
  h = MatMul (x, w1)
  r = Relu (h)
  o = MatMul (r, w2)
  q = QuantizeLinear (o, scale, zero)
  y = DequantizeLinear (q, scale, zero)
}
"""
WEIGHTS = {"w1": (32, 64), "w2": (64, 128)}
FEEDS = [{"x": np.random.default_rng(0).integers(-1, 2, (64, 32)).astype(np.float32)}]


def reordered(text: str = QUANTIZED) -> tuple[ir.Model, ir.Model]:
    """A network and the same with its channels in another order.

    The outputs before rounding are sums of tenths: half of them lie on a border between two steps, up to the last bit.
    """
    model = graph(text, WEIGHTS)
    for name, factor in (("w1", 1), ("w2", np.float32(0.1))):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy().round() * factor, name=name)
    result = model.clone()
    (group,) = [group for group in groups(result) if group.size == 64]
    permute(result, {group.name: np.arange(64)[::-1]})
    return model, result


def test_flipped_roundings_are_named_and_everything_else_holds_as_promised():
    verdict = verify(*reordered(), FEEDS, Preserving())
    (found,) = verdict.outputs
    assert verdict.kept and found.relative > 1e-4
    assert verdict.unrounded.activations == 1 and verdict.unrounded.outputs["y"].relative < Preserving().rtol
    (note,) = verdict.notes
    assert "1 quantized activations the other way" in note


def test_without_a_second_look_the_promise_is_broken(monkeypatch):
    monkeypatch.setattr(verifying, "leave_out_rounding", lambda model: 0)
    verdict = verify(*reordered(), FEEDS, Preserving())
    assert not verdict.kept and not verdict.notes
    with pytest.raises(PromiseBroken):
        verdict.demand("pass")


def test_a_swapped_channel_behind_a_rounding_is_caught():
    model, result = reordered()
    weight = result.graph.initializers["w2"]
    array = weight.const_value.numpy().copy()
    array[[0, 1]] = array[[1, 0]]
    weight.const_value = ir.tensor(array, name="w2")
    assert not verify(model, result, FEEDS, Preserving()).kept


def test_a_coarser_quantization_step_is_caught_though_nothing_differs_without_rounding():
    model, result = reordered()
    for name, value in result.graph.initializers.items():
        if name.startswith("scale"):
            value.const_value = ir.tensor(np.array(0.8, np.float32), name=name)
    verdict = verify(model, result, FEEDS, Preserving())
    assert not verdict.kept


def test_exact_and_lossy_promises_get_no_second_look():
    models = reordered()
    assert verify(*models, FEEDS, Exact()).unrounded is None
    assert verify(*models, FEEDS, Lossy()).unrounded is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float scale = {0.2}, uint8 zero = {128}", "float[2] scale = {0.1, 0.2}, uint8[2] zero = {128, 128}"),
        ("y = DequantizeLinear (q, scale, zero)", "y = DequantizeLinear (q, x, zero)"),
        ("y = DequantizeLinear (q, scale, zero)", "t = Transpose (q) y = DequantizeLinear (t, scale, zero)"),
        ("y = DequantizeLinear (q, scale, zero)", "y = DequantizeLinear (q, scale)"),
    ],
    ids=["a scale for each channel", "a scale at run time", "something between", "another zero point"],
)
def test_only_what_is_dequantized_at_once_with_one_scale_is_left_out(old, new):
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 21]>' + QUANTIZED.replace(old, new))
    for name, shape in WEIGHTS.items():
        model.graph.initializers[name] = ir.Value(name=name, const_value=ir.tensor(np.ones(shape, np.float32)))
    assert leave_out_rounding(model) == 0


DYNAMIC = """
g (float[n, 4, 5] x) => (float[n, 4, 6] y, float[n, 3, 3] z) {
  q, scale, zero = DynamicQuantizeLinear (x)
  i = MatMulInteger (q, w, zero, offset)
  f = Cast <to = 1> (i)
  y = Mul (f, scale)
  j = ConvInteger (q, kernel, zero)
  g = Cast <to = 1> (j)
  z = Mul (g, scale)
}
"""


def dynamic(text=DYNAMIC):
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text)
    for name, shape in {"w": (5, 6), "offset": (6,), "kernel": (3, 4, 3)}.items():
        array = np.random.default_rng(0).integers(-9, 9, shape).astype(np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(model)


def test_products_of_what_is_quantized_at_run_time_become_products_of_floats():
    x = np.random.default_rng(1).standard_normal((2, 4, 5)).astype(np.float32)
    rounds, smooth = dynamic(), dynamic()
    assert leave_out_rounding(smooth) == 1
    w, offset = (rounds.graph.initializers[name].const_value.numpy().astype(np.float32) for name in ("w", "offset"))
    with verifying.Session(rounds) as session, verifying.Session(smooth) as other:
        rough, fine = session.run({"x": x}), other.run({"x": x})
    np.testing.assert_allclose(fine["y"], x @ (w - offset), atol=1e-4)
    for name in ("y", "z"):
        assert 1e-4 < np.abs(rough[name] - fine[name]).max() < 0.05 * np.abs(fine[name]).max()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("f = Cast <to = 1> (i)", "k = Add (i, i) f = Cast <to = 1> (k)"),
        ("z = Mul (g, scale)", "k = Cast <to = 1> (q) l = ReduceMax <keepdims = 0> (k) z = Mul (g, l)"),
        ("i = MatMulInteger (q, w, zero, offset)", "i = MatMulInteger (q, w, offset, offset)"),
        ("i = MatMulInteger (q, w, zero, offset)", "i = MatMulInteger (q, w)"),
    ],
    ids=["integers go on", "codes go elsewhere", "another zero point", "no zero point"],
)
def test_codes_that_are_used_as_integers_stay(old, new):
    assert leave_out_rounding(dynamic(DYNAMIC.replace(old, new))) == 0


def test_saturation_stays():
    model = graph("""
    g (float[n] x) => (float[n] y) <float scale = {0.5}, int8 zero = {-100}> {
      q = QuantizeLinear (x, scale, zero)
      y = DequantizeLinear (q, scale, zero)
    }""")
    assert leave_out_rounding(model) == 1
    with verifying.Session(model) as session:
        answer = session.run({"x": np.array([-100, -14, 0.3, 113.5, 200], np.float32)})
    np.testing.assert_allclose(answer["y"], [-14, -14, 0.3, 113.5, 113.5])


def test_half_precision_inside_counts_and_is_said():
    reference = Observation(({"y": np.array([1.0, 2.0], np.float32)},))
    result = Observation(({"y": np.array([1.0, 2.002], np.float32)},))
    assert not compare(reference, result, Preserving()).kept
    verdict = compare(reference, result, Preserving(), epsilon=2.0**-10)
    assert verdict.kept and verdict.notes[0].startswith("output y: error 0.001, for it is computed in half precision")
    assert not compare(reference, result, Exact(), epsilon=2.0**-10).kept
    assert not compare(reference, Observation(({"y": np.array([1.0, 2.02], np.float32)},)), Preserving()).kept


@pytest.mark.parametrize(("code", "expected"), [(1, 0.0), (10, 2.0**-10), (11, 0.0), (16, 2.0**-7)])
def test_the_coarsest_type_that_is_computed_in_counts(code, expected):
    model = graph(f"g (float[n] x) => (float[n] y) {{ a = Cast <to = {code}> (x) b = Neg (a) y = Cast <to = 1> (b) }}")
    assert unit(model) == expected


def test_weights_that_are_only_stored_in_half_precision_do_not_count():
    model = graph(
        "g (float[n, 2] x) => (float[n, 2] y) <float16[2] w = {1, 2}> { f = Cast <to = 1> (w) y = Mul (x, f) }"
    )
    assert unit(model) == 0.0
