import numpy as np
import onnx
import pytest

import bevel
from bevel.passes.fold import Fold
from bevel.passes.pipeline import optimize
from bevel.testing import check_pass
from tests.graphs import proto

NORM = {"scale": (4,), "shift": (4,), "mean": (4,), "variance": (4,)}
CONV = "c = Conv (x, w)"


TAIL = "y = BatchNormalization (c, scale, shift, mean, variance)"


def normalized(layer, weights, *, tail=TAIL, image="n, 3, 6, 6"):
    result = "n, f" if image.count(",") == 1 else "n, f, p, q"
    source = proto(f"m (float[{image}] x) => (float[{result}] y) {{ {layer}  {tail} }}", {**weights, **NORM})
    for initializer in source.graph.initializer:
        if initializer.name == "variance":
            positive = np.abs(onnx.numpy_helper.to_array(initializer)) + 0.1
            initializer.CopyFrom(onnx.numpy_helper.from_array(positive, "variance"))
    return bevel.load(source)


def operators(model):
    return [node.op_type for node in model.graph]


FOLDED = [
    (CONV, {"w": (4, 3, 3, 3)}, "n, 3, 6, 6"),
    ("c = Conv (x, w, b)", {"w": (4, 3, 3, 3), "b": (4,)}, "n, 3, 6, 6"),
    ("c = Conv <group=2> (x, w)", {"w": (4, 2, 3, 3)}, "n, 4, 6, 6"),
    ("c = Conv <group=4> (x, w, b)", {"w": (4, 1, 3, 3), "b": (4,)}, "n, 4, 6, 6"),
    ("c = ConvTranspose (x, w)", {"w": (3, 4, 2, 2)}, "n, 3, 6, 6"),
    ("c = ConvTranspose <group=2> (x, w, b)", {"w": (6, 2, 2, 2), "b": (4,)}, "n, 6, 5, 5"),
    ("c = Gemm (x, w)", {"w": (3, 4)}, "n, 3"),
    ("c = Gemm <transB=1> (x, w, b)", {"w": (4, 3), "b": (4,)}, "n, 3"),
]


@pytest.mark.parametrize(("layer", "weights", "image"), FOLDED)
def test_a_normalization_goes_into_the_layer_before(layer, weights, image):
    model = normalized(layer, weights, image=image)
    step = check_pass(Fold(), model)
    assert step.error > 0 or step.verdict.outputs[0].exact
    optimize(model, "fold")
    assert operators(model) == [layer.split()[2]]
    assert set(model.graph.initializers) == {"w", "b" if "b" in weights else "shift"}
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_wrong_group_order_is_caught(monkeypatch):
    def wrong(weight, factor, axis, groups):
        return weight.astype(np.float64) * np.tile(factor[: weight.shape[1]], 1).reshape(1, -1, 1, 1)

    monkeypatch.setattr("bevel.passes.fold.scaled", wrong)
    layer, weights, image = FOLDED[5]
    with pytest.raises(bevel.BevelError, match="fold: promised Preserving"):
        optimize(normalized(layer, weights, image=image), "fold")


@pytest.mark.parametrize(
    ("layer", "weights", "tail", "why"),
    [
        (CONV, {"w": (4, 3, 3, 3)}, TAIL.replace("y =", "b =") + "  y = Add (b, c)", "two readers"),
        ("k = Relu (w)  c = Conv (x, k)", {"w": (4, 3, 3, 3)}, None, "computed weight"),
        ("c0 = Conv (x, w)  c = Relu (c0)", {"w": (4, 3, 3, 3)}, None, "something between"),
        ("c1 = Conv (x, w)  c2 = Conv (x, w)  c = Add (c1, c2)", {"w": (4, 3, 3, 3)}, None, "no layer before"),
        ("c = Gemm <alpha=2.0> (x, w)", {"w": (3, 4)}, None, "scaled Gemm"),
    ],
)
def test_what_must_stay_stays(layer, weights, tail, why):
    image = "n, 3" if "Gemm" in layer else "n, 3, 6, 6"
    model = normalized(layer, weights, image=image, **({"tail": tail} if tail else {}))
    check_pass(Fold(), model)
    optimize(model, "fold")
    assert "BatchNormalization" in operators(model), why


def test_a_shared_weight_stays():
    tail = "y_ = BatchNormalization (c, scale, shift, mean, variance)  z = Conv (x, w)  y = Add (y_, z)"
    model = normalized(CONV, {"w": (4, 3, 3, 3)}, tail=tail)
    optimize(model, "fold")
    assert "BatchNormalization" in operators(model)


def test_training_mode_stays():
    tail = "y, m, v = BatchNormalization <training_mode=1> (c, scale, shift, mean, variance)"
    model = normalized(CONV, {"w": (4, 3, 3, 3)}, tail=tail)
    optimize(model, "fold")
    assert operators(model) == ["Conv", "BatchNormalization"]


def test_parameters_that_two_normalizations_share_are_not_overwritten():
    tail = """a = BatchNormalization (c, scale, shift, mean, variance)  d = Conv (a, w2)
              y = BatchNormalization (d, scale, shift, mean, variance)"""
    model = normalized(CONV, {"w": (4, 3, 3, 3), "w2": (4, 4, 1, 1)}, tail=tail)
    check_pass(Fold(), model)
    optimize(model, "fold")
    assert operators(model) == ["Conv", "Conv"]


def test_the_shipped_classifier_loses_its_normalizations():
    from importlib.resources import files

    model = bevel.load(str(files("bevel") / "models" / "digits.onnx"))
    report = optimize(model, "simplify,fold")
    assert "BatchNormalization" not in operators(model)
    assert report.steps[1].error <= Fold.promise.rtol
