"""Random operators are held: what is drawn is alike in each run, and spread as it should be."""

import numpy as np
import pytest

import bevel
from bevel.backends.chance import random_nodes, steadied, unsteady
from bevel.backends.onnxruntime import Session
from bevel.errors import PromiseBroken, UnsupportedModel
from bevel.passes.base import Exact
from bevel.passes.verify import verify
from tests.graphs import MLP_WEIGHTS, graph

X = np.random.default_rng(0).uniform(size=(60, 50)).astype(np.float32)
DRAWN = {
    "RandomNormalLike <mean = 3.0, scale = 2.0> (x)": (3, 2),
    "RandomNormal <shape = [60, 50], scale = 0.5> ()": (0, 0.5),
    "RandomUniformLike <low = -1.0, high = 2.0> (x)": (0.5, 3 / 12**0.5),
    "RandomUniform <shape = [60, 50]> ()": (0.5, 1 / 12**0.5),
    "Bernoulli (x)": (0.5, 0.5),
}
NOISY = """
noisy (float[n, 6] x) => (float[n, 3] y) {
  h = MatMul (x, w1)  b = Add (h, b1)  noise = RandomNormalLike (b)  r = Add (b, noise)  y = MatMul (r, w2)
}
"""


def drawing(what):
    return graph(f"m (float[n, 50] x) => (float[n, 50] y) {{ zero = Sub (x, x)  r = {what}  y = Add (zero, r) }}")


@pytest.mark.parametrize("what", DRAWN)
def test_numbers_are_the_same_in_each_run_and_spread_as_asked_for(what):
    mean, deviation = DRAWN[what]
    with Session(drawing(what)) as one, Session(drawing(what)) as other:
        first, second, third = (session.run({"x": X})["y"] for session in (one, one, other))
    assert np.array_equal(first, second) and np.array_equal(first, third)
    # Of 3,000 numbers, the mean varies by 0.02 deviations.
    assert abs(first.mean() - mean) < 0.1 * deviation and abs(first.std() / deviation - 1) < 0.05
    assert len(np.unique(first)) > 2000 or "Bernoulli" in what


def test_a_draw_that_is_taken_for_another_shows():
    text = "m (float[n] x) => (float[n] y) {a = RandomUniformLike (x)  b = RandomUniformLike (x)  y = Sub (a, b)}"
    other, feeds = text.replace("Sub (a, b)", "Sub (b, a)"), [{"x": X[0]}]
    assert verify(graph(text), graph(text), feeds, Exact()).kept
    with pytest.raises(PromiseBroken):
        verify(graph(text), graph(other), feeds, Exact()).demand("other")


def test_dropout_that_is_on_gives_its_mean():
    on = graph("m (float[n, 50] x, bool t) => (float[n, 50] y, bool[n, 50] mask) { y, mask = Dropout (x, , t) }")
    with Session(on) as session:
        answer = session.run({"x": X, "t": np.array(True)})
    assert np.array_equal(answer["y"], X) and answer["mask"].all()
    off = graph("m (float[n, 50] x) => (float[n, 50] y) { y = Dropout (x) }")
    assert not random_nodes(off) and steadied(off) is off


def test_a_model_with_noise_inside_is_optimized_and_verified():
    model = graph(NOISY, MLP_WEIGHTS)
    report = bevel.optimize(model, "simplify,quantize-blocks{format=int8}")
    assert "random operators drew the same in each run: node 'noise' (RandomNormalLike)" in report.inputs
    assert 0 < report.error < 0.05
    assert any(node.op_type == "RandomNormalLike" for node in model.graph)


def test_what_cannot_be_held_is_refused_by_name():
    drawn = graph("m (float[n, 6] x) => (int32[n, 2] y) { y = Multinomial <sample_size = 2> (x) }")
    assert [node.op_type for node in unsteady(drawn)] == ["Multinomial"]
    with pytest.raises(UnsupportedModel, match=r"'y' \(Multinomial\): draws other numbers"):
        bevel.optimize(drawn, "simplify")
    assert bevel.optimize(drawn, "simplify", verify=False)


def test_a_module_that_draws_is_converted_but_not_verified():
    model = graph(NOISY, MLP_WEIGHTS)
    with pytest.raises(UnsupportedModel, match="'noise'"):
        bevel.to_torch(model)
    assert bevel.to_torch(model, verify=False)
