import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from bevel.errors import CalibrationError, EditRefused, PromiseBroken
from bevel.passes.activations.grids import bias_codes, coded, spanning
from bevel.passes.activations.linear import Writer
from bevel.passes.quantize_static import QuantizeStatic
from tests.graphs import graph, proto

RNG = np.random.default_rng(3)
CNN = """
net (float[n, 3, 8, 8] x) => (float[n, 5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  b = Conv <pads = [1, 1, 1, 1], group = 2> (r, w2, b2)
  s = Add (b, r)
  t = Relu (s)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)
  c = Conv <pads = [1, 1, 1, 1], group = 8> (p, w3)
  e = Clip (c, low, high)
  k = Concat <axis = 1> (e, p)
  g = GlobalAveragePool (k)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w4, b4)
}
"""
SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 4, 3, 3), "b2": (8,), "w3": (8, 1, 3, 3), "w4": (5, 16), "b4": (5,)}
EXTREMES = QuantizeStatic(calibration="minmax", samples=1000)
MATMUL = "net (float[n, 6] x) => (float[n, 4] y) { y = MatMul (x, w) }"


def cnn():
    model = proto(CNN, SHAPES)
    for name, bound in (("low", 0.0), ("high", 6.0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(bound), name))
    return bevel.load(model)


def images(count=6, rows=4):
    return [{"x": RNG.standard_normal((rows, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def rows(width=6, count=4, scale=1.0, shift=0.0):
    return [{"x": (RNG.standard_normal((64, width)) * scale + shift).astype(np.float32)} for _ in range(count)]


def answers(model, feeds, level=Level.AS_DEPLOYED):
    with Session(model, level=level) as session:
        return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])


def operators(model, tmp_path):
    """What ONNX Runtime makes of a model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def constants(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def error(expected, got):
    return float(np.abs(expected - got).max() / np.abs(expected).max())


def test_a_convolutional_network_is_8_bits_from_end_to_end(tmp_path):
    model, feeds = cnn(), images()
    before = answers(model, feeds)
    report = bevel.optimize(model, "quantize-static", calibration=feeds)
    assert "4 of 4 layers compute in 8 bits" in report.steps[0].notes
    left = operators(model, tmp_path)
    assert left["QLinearConv"] == 3 and left["QGemm"] == 1 and left["QLinearAdd"] == 1 and left["QLinearConcat"] == 1
    assert left["QLinearGlobalAveragePool"] == 1 and not left["Relu"] + left["Clip"] + left["Conv"] + left["Gemm"]
    after = answers(model, feeds)
    assert error(before, after) < 0.05
    assert error(answers(model, feeds, Level.AS_WRITTEN), after) < 0.02  # a step of 1/255 here and there
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.95


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "mse", "entropy"])
def test_ranges_of_every_method_are_good_for_plain_data(calibration):
    model, feeds = cnn(), images()
    before = answers(model, feeds)
    bevel.optimize(model, QuantizeStatic(calibration=calibration, percentile=99.9), calibration=feeds)
    assert error(before, answers(model, feeds)) < 0.1


def reference(x, w, grid_x, b=None, axis=1):
    """A layer in 8 bits, in numpy."""
    found = coded(w, axis)
    product = grid_x.round_trip(x).astype(np.float64) @ found.decode()
    scale = found.scale * grid_x.scale
    return product if b is None else product + bias_codes(b, scale) * scale


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0], ids=["both signs", "positive", "negative"])
@pytest.mark.parametrize(
    "text",
    [
        MATMUL,
        "net (float[n, 6] x) => (float[n, 4] y) { h = MatMul (x, w)  y = Add (h, b) }",
        "net (float[n, 6] x) => (float[n, 4] y) { h = MatMul (x, w)  y = Add (b, h) }",
        "net (float[n, 6] x) => (float[n, 4] y) { y = Gemm (x, w, b) }",
        "net (float[n, 6] x) => (float[n, 4] y) { t = Transpose (v) h = MatMul (x, t) y = Add (h, b) }",
        "net (float[n, 6] x) => (float[n, 4] y) { y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, v, b) }",
    ],
    ids=["matmul", "bias", "bias first", "gemm", "transposed", "factors"],
)
def test_products_are_those_of_the_codes(text, shift, tmp_path):
    feeds = rows(shift=shift)
    model = graph(
        text,
        {
            name: (4, 6) if name == "v" else (6, 4) if name == "w" else (4,)
            for name in "wvb"
            if f" {name})" in text or f"{name}, " in text or f"({name}" in text
        },
    )
    kept = constants(model)
    w = kept["w"] if "w" in kept else kept["v"].T * (0.5 if "alpha" in text else 1)
    b = kept.get("b", np.zeros(4)) * (2 if "beta" in text else 1)
    bevel.optimize(model, EXTREMES, calibration=feeds)
    x = np.concatenate([feed["x"] for feed in feeds])
    fitted = np.concatenate([feed["x"] for feed in feeds[:3]])
    wanted = reference(x, w, spanning(fitted.min(), fitted.max()), b)
    for level in Level:
        assert error(wanted, answers(model, feeds, level)) < 1e-5
    found = operators(model, tmp_path)
    assert found["MatMulIntegerToFloat"] + found["QGemm"] == 1 and not found["MatMul"] + found["Gemm"] + found["Add"]


def planted(monkeypatch, **changes):
    """Let every weight be read with something wrong in it."""
    right = Writer.weight

    def wrong(self, site):
        codes = self.weights[site.number]
        changed = {name: change(getattr(codes, name)) for name, change in changes.items()}
        return right(
            dataclasses.replace(self, weights={**self.weights, site.number: dataclasses.replace(codes, **changed)}),
            site,
        )

    monkeypatch.setattr(Writer, "weight", wrong)


def test_a_scale_along_the_wrong_axis_is_caught(monkeypatch):
    model = graph(MATMUL.replace("n, 4", "n, 6"), {"w": (6, 6)})
    model.graph.initializers["w"].const_value = ir.tensor(np.diag(10.0 ** np.arange(6)).astype(np.float32) + 1)
    planted(monkeypatch, axis=lambda axis: 1 - axis)
    report = bevel.optimize(model, "quantize-static", calibration=rows())
    assert any("left in floats: w: its own output would have an error" in note for note in report.steps[0].notes)
    with pytest.raises(PromiseBroken, match=r"error at most 0\.02(?s:.)*worst: w"):
        bevel.optimize(model, QuantizeStatic(max_layer_error=1e9, repair=False), calibration=rows(), max_error=0.02)


def test_a_wrong_zero_point_is_caught(monkeypatch):
    right = Writer.pair

    def wrong(self, value, grid, after):
        back = right(self, value, grid, after)
        back.producer().replace_input_with(2, self.constant("wrong", np.uint8(grid.zero + 20)))
        return back

    monkeypatch.setattr(Writer, "pair", wrong)
    model = graph(MATMUL, {"w": (6, 4)})
    report = bevel.optimize(model, QuantizeStatic(max_layer_error=0.03), calibration=rows())
    assert report.error == 0 and any("its own output would have an error" in note for note in report.steps[0].notes)


def spoiled():
    """Two layers: the first has one input channel a thousand times larger, which its weight hides."""
    model = graph(
        "net (float[n, 6] x) => (float[n, 4] y) { h = MatMul (x, u) r = Relu (h) y = MatMul (r, w) }",
        {"u": (6, 6), "w": (6, 4)},
    )
    weight = constants(model)["u"].copy()
    weight[0] *= 1e-4
    model.graph.initializers["u"].const_value = ir.tensor(weight)
    feeds = rows()
    for feed in feeds:
        feed["x"][:, 0] *= 1e3
    return model, feeds


def test_a_layer_that_loses_too_much_stays_in_floats_and_is_named():
    model, feeds = spoiled()
    report = bevel.optimize(model, EXTREMES, calibration=feeds)
    notes = "\n".join(report.steps[0].notes)
    assert "1 of 2 layers" in notes and "left in floats: u: its own output" in notes
    assert report.error < 0.05


def test_as_many_layers_stay_in_floats_as_the_limit_takes():
    model, feeds = spoiled()
    free = dataclasses.replace(EXTREMES, max_layer_error=1e9)
    limited = model.clone()
    report = bevel.optimize(limited, free, calibration=feeds, max_error=0.05)
    assert report.error <= 0.05
    assert any(
        "left in floats: u: the error of the outputs would be above 0.05" in each for each in report.steps[0].notes
    )
    with pytest.raises(PromiseBroken, match="worst: u"):
        bevel.optimize(model.clone(), dataclasses.replace(free, repair=False), calibration=feeds, max_error=0.05)
    with pytest.raises(PromiseBroken, match=r"no layer can compute in 8 bits.*: u, w") as caught:
        bevel.optimize(model.clone(), free, calibration=feeds, max_error=1e-9)
    assert caught.value.exit_code == 1


def test_a_layer_left_in_floats_is_not_quantized_by_the_runtime(tmp_path):
    model, feeds = cnn(), images()
    bevel.optimize(model, QuantizeStatic(skip=("w2", "w3")), calibration=feeds)
    found = operators(model, tmp_path)
    assert found["QLinearConv"] == 1 and found["Conv"] + found["FusedConv"] == 2


def test_shared_inputs_and_weights_are_quantized_once():
    text = """net (float[n, 6] x) => (float[n, 6] y) {
      a = MatMul (x, w)
      b = MatMul (x, w)
      c = MatMul (a, w)
      d = Add (b, c)
      y = MatMul (d, u)
    }"""
    model, feeds = graph(text, {"w": (6, 6), "u": (6, 6)}), rows()
    before = answers(model, feeds)
    bevel.optimize(model, EXTREMES, calibration=feeds)
    assert [name for name in constants(model) if name.endswith(".codes")] == ["w.codes", "u.codes"]
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 3
    assert "w" not in constants(model) and error(before, answers(model, feeds)) < 0.05


def test_what_is_no_layer_with_a_constant_weight_is_left_alone():
    text = "net (float[n, 6] x) => (float[n, n] y) { t = Transpose (x)  y = MatMul (x, t) }"
    model = graph(text)
    report = bevel.optimize(model, "quantize-static", calibration=rows())
    assert report.error == 0 and report.steps[0].notes == ("0 of 0 layers compute in 8 bits",)


def test_zero_channels_and_constant_activations():
    model = graph(
        """net (float[n, 6] x) => (float[n, 4] y) {
          o = Constant <value_float = 0.0> ()
          z = Mul (x, o)
          h = Add (z, c)
          a = MatMul (h, w)
          y = Add (a, b)
        }""",
        {"w": (6, 4), "b": (4,), "c": (6,)},
    )
    values = constants(model)
    weight = values["w"].copy()
    weight[:, 1] = 0
    model.graph.initializers["w"].const_value = ir.tensor(weight)
    feeds = rows()
    before = answers(model, feeds)
    bevel.optimize(model, EXTREMES, calibration=feeds)
    assert error(before, answers(model, feeds)) < 0.05


def test_a_bias_that_is_too_large_for_32_bits_makes_its_channel_coarser():
    model = graph("net (float[n, 6] x) => (float[n, 4] y) { y = Gemm (x, w, b) }", {"w": (6, 4), "b": (4,)})
    values = constants(model)
    model.graph.initializers["w"].const_value = ir.tensor(values["w"] * np.float32(1e-9))
    feeds = rows()
    before = answers(model, feeds)
    bevel.optimize(model, EXTREMES, calibration=feeds)
    assert error(before, answers(model, feeds)) < 1e-6


def test_half_precision_is_left_alone_by_name():
    text = "net (float16[n, 6] x) => (float16[n, 4] y) { y = MatMul (x, w) }"
    model = proto(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(RNG.standard_normal((6, 4)).astype(np.float16), "w"))
    loaded = bevel.load(model)
    report = bevel.optimize(
        loaded, "quantize-static", calibration=[{"x": feed["x"].astype(np.float16)} for feed in rows()]
    )
    assert report.error == 0 and "left in floats: w: it computes in FLOAT16" in report.steps[0].notes


def older(text, version, weights):
    model = proto(text, weights)
    model.opset_import[0].version = version
    model.ir_version = 6
    return model


def test_an_older_opset_is_raised():
    text = (
        "net (float[n, 6, 1] x) => (float[n, 4] y) { s = Squeeze <axes = [2]> (x) h = Gemm (s, w, b) y = Softmax (h) }"
    )
    model = bevel.load(older(text, 9, {"w": (6, 4), "b": (4,)}))
    feeds = [{"x": feed["x"][..., None]} for feed in rows()]
    before = answers(model, feeds)
    bevel.optimize(model, "quantize-static", calibration=feeds)
    assert model.opset_imports[""] == 13
    assert error(before, answers(model, feeds)) < 0.05


def test_an_older_operator_of_another_meaning_is_refused():
    text = "net (float[n, 6] x) => (float[n, 4] y) { h = Gemm (x, w, b)  y, m = Dropout (h) }"
    model = bevel.load(older(text, 9, {"w": (6, 4), "b": (4,)}))
    with pytest.raises(EditRefused, match="Dropout may mean something else"):
        bevel.optimize(model, "quantize-static", calibration=rows())
    assert model.opset_imports[""] == 9


def test_what_overflows_is_refused_by_name():
    model = graph("net (float[n, 6] x) => (float[n, 4] y) { e = Exp (x)  y = MatMul (e, w) }", {"w": (6, 4)})
    with pytest.raises(CalibrationError, match="value 'e': is not finite"):
        bevel.optimize(model, "quantize-static", calibration=rows(scale=1e3), verify=False)


def test_the_result_is_saved_loaded_and_goes_through_other_passes(tmp_path):
    model, feeds = cnn(), images()
    bevel.optimize(model, "quantize-static", calibration=feeds)
    bevel.save(model, tmp_path / "small.onnx")
    again = bevel.load(tmp_path / "small.onnx")
    np.testing.assert_array_equal(answers(again, feeds), answers(model, feeds))
    bevel.optimize(again, "simplify,prune-channels{ratio=0.25}", calibration=feeds)
    assert answers(again, feeds).shape == (24, 5)


def test_an_output_of_a_convolution_keeps_its_name():
    model = graph("net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) { y = Conv (x, w) }", {"w": (2, 3, 1, 1)})
    feeds = [{"x": RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)}]
    before = answers(model, feeds)
    bevel.optimize(model, EXTREMES, calibration=feeds)
    assert [value.name for value in model.graph.outputs] == ["y"] and error(before, answers(model, feeds)) < 0.03


def test_seven_bits_for_weights():
    model = cnn()
    bevel.optimize(model, QuantizeStatic(reduce_range=True), calibration=images())
    assert max(np.abs(array).max() for name, array in constants(model).items() if name.endswith(".codes")) == 63
