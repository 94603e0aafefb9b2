"""What layers read is centred by means of biases: exactly, without a node where a vector is added already."""

import numpy as np
import onnx_ir as ir
import pytest

from bevel.errors import PromiseBroken
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.pipeline import optimize
from bevel.passes.scaling import shifts
from bevel.passes.smooth import Smooth
from bevel.testing import check_pass
from tests import zoo
from tests.graphs import graph
from tests.test_mamba import feed, in_rounds, scan

# A norm with a bias, read by two layers that have biases; then a layer whose input nothing is added to.
NET = """
net (float[n, 6] x) => (float[n, 4] y) {
  h = LayerNormalization (x, gain, shift)
  u = MatMul (h, w1)
  a = Add (u, b1)
  s = Sigmoid (a)
  r = MatMul (s, w3)
  z = Add (r, b3)
  g = Gemm <transB = 1> (h, w2, b2)
  y = Add (g, z)
}
"""
SHAPES = {"gain": (6,), "shift": (6,), "w1": (6, 8), "b1": (8,), "w2": (4, 6), "b2": (4,), "w3": (8, 4), "b3": (4,)}
SHIFTS = "smooth{shifts=true}"
FEEDS = [{"x": np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)} for _ in range(2)]


def net(text: str = NET) -> ir.Model:
    model = graph(text, {**SHAPES, "w4": (6, 4)} if "w4" in text else SHAPES)
    shift = model.graph.initializers["shift"]
    shift.const_value = ir.tensor(np.linspace(-9, 9, 6).astype(np.float32), name="shift")
    return model


def content(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def ends(model: ir.Model, place: int, feeds) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest number in each channel of what the layers at a place of the graph read."""
    copy = model.clone()
    data = shifts.readers(copy)
    value = list(data)[place]
    copy.graph.outputs.append(value)
    with Execution().open(copy) as runs:
        rows = np.concatenate([runs.run(each)[value.name].reshape(-1, value.shape[-1]) for each in feeds])
    return rows.min(0), rows.max(0)


def test_a_norm_gives_what_is_centred_and_all_its_readers_take_up_the_rest() -> None:
    model = net()
    check_pass(Smooth(shifts=True), model, FEEDS)
    nodes, before = len(list(model.graph)), content(model, "shift").copy()
    (step,) = optimize(model, SHIFTS, calibration=FEEDS).steps
    low, high = ends(model, 0, FEEDS)
    np.testing.assert_allclose(low, -high, atol=1e-5)
    assert not np.allclose(content(model, "shift"), before)
    assert any(note.startswith("2 inputs of layers centred, 1 by an addition") for note in step.notes)
    assert len(list(model.graph)) == nodes + 1, "behind the sigmoid, where all is positive"


OTHER_READER = NET.replace("y = Add (g, z)", "k = Tanh (h)  m = MatMul (k, w4)  f = Add (g, z)  y = Add (f, m)")


@pytest.mark.parametrize(
    ("text", "moves"), [(NET, True), (OTHER_READER, False), (NET.replace("(h, w2, b2)", "(h, w2)"), False)]
)
def test_who_else_reads_it_or_has_no_bias_keeps_it_where_it_is(text: str, moves: bool) -> None:
    model = net(text)
    before = content(model, "shift").copy()
    shifts.centre(model, Context(0, Calibration(lambda: FEEDS, "a test"), Execution()), (), ())
    assert np.array_equal(content(model, "shift"), before) is not moves


@pytest.mark.parametrize("build", [scan, in_rounds])
def test_the_step_of_a_mamba_block_is_centred_by_an_addition(build) -> None:
    model, feeds = build(), [{"u": feed()}]
    feeds = [zoo.trials("mamba")[0][0]] if build is in_rounds else feeds
    (step,) = optimize(model, SHIFTS, calibration=feeds).steps
    assert any(note.startswith("1 inputs of layers centred, 1 by an addition") for note in step.notes)
    (name,) = [name for name in model.graph.initializers if name.endswith("centred.shift")]
    assert content(model, name).any()


def test_a_bias_that_does_not_take_up_the_rest_is_caught(monkeypatch) -> None:
    monkeypatch.setattr(shifts, "hold", lambda value, array: None)
    with pytest.raises(PromiseBroken, match="smooth"):
        optimize(net(), SHIFTS, calibration=FEEDS)
