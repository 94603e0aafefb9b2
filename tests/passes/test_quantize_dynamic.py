import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from bevel.errors import PromiseBroken
from bevel.passes.activations.dynamic import Products
from bevel.passes.activations.grids import coded, spanning
from bevel.passes.activations.ledger import Ledger
from bevel.passes.activations.sites import sites
from bevel.passes.quantize_dynamic import OPERATORS, QuantizeDynamic
from tests.graphs import graph, proto


def rows(*shape, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal(shape) + shift).astype(np.float32)} for _ in range(3)]


def answers(model, feeds, level=Level.AS_DEPLOYED):
    with Session(model, level=level) as session:
        return [next(iter(session.run(feed).values())) for feed in feeds]


def error(expected, got):
    differences = [np.abs(one - other).max() for one, other in zip(expected, got, strict=True)]
    return float(max(differences) / max(np.abs(one).max() for one in expected))


def constants(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def count(model, op_type):
    return sum(node.op_type == op_type for node in model.graph)


def rounded(x):
    """The input by its own extremes, as DynamicQuantizeLinear has it."""
    return spanning(float(x.min()), float(x.max())).round_trip(x)


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0], ids=["both signs", "positive", "negative"])
@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("net (float[n, m, 6] x) => (float[n, m, 4] y) { y = MatMul (x, w) }", (1, 0)),
        ("net (float[n, m, 6] x) => (float[n, m, 4] y) { t = Transpose (v) y = MatMul (x, t) }", (1, 0)),
        ("net (float[n, 6] x) => (float[n, 4] y) { y = Gemm (x, w, b) }", (1, 1)),
        (
            "net (float[n, 6] x) => (float[n, 4] y) { y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, v, b) }",
            (0.5, 2),
        ),
    ],
    ids=["matmul", "transposed", "gemm", "factors"],
)
def test_products_are_those_of_the_codes(text, factors, shift):
    sizes = {"w": (6, 4), "v": (4, 6), "b": (4,)}
    model = graph(text, {name: shape for name, shape in sizes.items() if f"{name})" in text or f"{name}, b" in text})
    kept, feeds = constants(model), rows(*((5, 3, 6) if "m, 6" in text else (5, 6)), shift=shift)
    weight = kept["w"] if "w" in kept else kept["v"].T
    bevel.optimize(model, "quantize-dynamic", calibration=feeds)
    decoded = coded(weight * factors[0], 1).decode()
    wanted = [rounded(feed["x"]).astype(np.float64) @ decoded + kept.get("b", 0) * factors[1] for feed in feeds]
    for level in Level:
        assert error(wanted, answers(model, feeds, level)) < 1e-5
    assert not count(model, "MatMul") + count(model, "Gemm") and not {"w", "v"} & constants(model).keys()


def test_an_input_and_a_weight_that_several_read_are_quantized_once():
    body = "a = MatMul (x, w) b = MatMul (x, u) c = MatMul (b, w) y = Add (a, c)"
    text = f"net (float[n, 6] x) => (float[n, 6] y) {{ {body} }}"
    model, feeds = graph(text, {"w": (6, 6), "u": (6, 6)}), rows(5, 6)
    before = answers(model, feeds)
    bevel.optimize(model, "quantize-dynamic", calibration=feeds)
    assert count(model, "DynamicQuantizeLinear") == 2 and count(model, "MatMulInteger") == 3
    assert sum(name.endswith(".codes") for name in constants(model)) == 2
    assert error(before, answers(model, feeds)) < 0.05


def test_convolutions_and_products_of_activations_stay():
    text = """
    net (float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) {
      c = Conv (x, k)
      t = Transpose <perm = [0, 1, 3, 2]> (c)
      y = MatMul (c, t)
    }
    """
    model, feeds = graph(text, {"k": (4, 4, 1, 1)}), rows(2, 4, 6, 6)
    report = bevel.optimize(model, "quantize-dynamic", calibration=feeds)
    assert report.error == 0 and count(model, "Conv") == count(model, "MatMul") == 1
    assert any("left in floats: k: ONNX Runtime has no such Conv" in note for note in report.steps[0].notes)


def test_a_scale_along_the_wrong_axis_is_caught_and_named(monkeypatch):
    right = Products.product

    def wrong(self, site):
        codes = self.weights[site.number]
        self._writer.weights = self.weights = {site.number: dataclasses.replace(codes, scale=codes.scale[::-1].copy())}
        return right(self, site)

    monkeypatch.setattr(Products, "product", wrong)
    model, feeds = graph("net (float[n, 6] x) => (float[n, 4] y) { y = MatMul (x, w) }", {"w": (6, 4)}), rows(9, 6)
    report = bevel.optimize(model.clone(), "quantize-dynamic", calibration=feeds)
    assert report.error == 0 and any("its own output would have an error" in note for note in report.steps[0].notes)
    with pytest.raises(PromiseBroken, match="worst: w") as caught:
        free = QuantizeDynamic(max_layer_error=1e9, repair=False)
        bevel.optimize(model, free, calibration=feeds, max_error=0.05)
    assert caught.value.exit_code == 1


def outliers():
    """Two products: before the first, one channel is a thousand times larger than the others, whose weights matter."""
    text = "net (float[n, 6] x) => (float[n, 4] y) { h = MatMul (x, u) r = Tanh (h) y = MatMul (r, w) }"
    model, feeds = graph(text, {"u": (6, 6), "w": (6, 4)}), rows(64, 6)
    weight = constants(model)["u"].copy()
    weight[0] *= 1e-4
    model.graph.initializers["u"].const_value = ir.tensor(weight)
    for feed in feeds:
        feed["x"][:, 0] *= 1e3
    return model, feeds


@pytest.mark.parametrize(("options", "limit"), [({}, None), ({"max_layer_error": 1e9}, 0.05)], ids=["own", "outputs"])
def test_a_layer_that_loses_too_much_stays_in_floats(options, limit):
    model, feeds = outliers()
    report = bevel.optimize(model, QuantizeDynamic(**options), calibration=feeds, max_error=limit)
    notes = "\n".join(report.steps[0].notes)
    assert report.error < 0.05 and "1 of 2 layers" in notes and "left in floats: u: " in notes


def test_without_calibration_and_with_7_bits():
    model = graph("net (float[n, 6] x) => (float[n, 4] y) { y = MatMul (x, w) }", {"w": (6, 4)})
    report = bevel.optimize(model, QuantizeDynamic(reduce_range=True))
    assert 0 < report.error < 0.05 and np.abs(constants(model)["w.codes"]).max() == 63


def test_half_precision_is_left_alone_by_name():
    model = proto("net (float16[n, 6] x) => (float16[n, 4] y) { y = MatMul (x, w) }")
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    report = bevel.optimize(bevel.load(model), "quantize-dynamic")
    assert report.error == 0 and "left in floats: w: it computes in FLOAT16" in report.steps[0].notes


def test_an_older_opset_is_raised():
    model = proto("net (float[n, 6] x) => (float[n, 4] y) { h = MatMul (x, w) y = Relu (h) }", {"w": (6, 4)})
    model.opset_import[0].version, model.ir_version = 9, 4
    loaded = bevel.load(model)
    assert bevel.optimize(loaded, "quantize-dynamic").error < 0.05 and loaded.opset_imports[""] == 13


def test_the_result_is_saved_loaded_and_goes_through_other_passes(tmp_path):
    text = "net (float[n, 6] x) => (float[n, 4] y) { h = Gemm (x, u, b) r = Relu (h) y = MatMul (r, w) }"
    model, feeds = graph(text, {"u": (6, 8), "b": (8,), "w": (8, 4)}), rows(5, 6)
    bevel.optimize(model, "quantize-dynamic", calibration=feeds)
    bevel.save(model, tmp_path / "small.onnx")
    again = bevel.load(tmp_path / "small.onnx")
    np.testing.assert_array_equal(answers(again, feeds), answers(model, feeds))
    bevel.optimize(again, "simplify,prune-channels{ratio=0.25}", calibration=feeds)
    assert answers(again, feeds)[0].shape == (5, 4)


def test_layers_that_share_a_weight_are_counted_apart():
    model = graph("net (float[n, 16] x) => (float[n, 16] y) { a = MatMul (x, w)  y = MatMul (a, w) }", {"w": (16, 16)})
    (first, second), _ = sites(model, (), (), OPERATORS)
    ledger = Ledger({})
    ledger.keep(first, 0.01)
    ledger.leave(second, "it loses too much")
    first_line, *_, last_line = ledger.notes()
    assert first_line == "1 of 2 layers compute in 8 bits"
    assert last_line == "left in floats: y: it loses too much"
