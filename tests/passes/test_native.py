from collections import Counter

import numpy as np
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.passes.activations.native import write_native
from tests.graphs import graph
from tests.passes.test_quantize_static import EXTREMES, operators

RNG = np.random.default_rng(5)
SHUFFLE = """
net (float[{n}, 6, 4, 4] x) => (float[{n}, 6, 4, 4] y) {{
  apart = Constant <value_ints = {apart}> ()
  whole = Constant <value_ints = [0, 6, 4, 4]> ()
  a = Reshape (x, apart)
  b = Transpose <perm = {order}> (a)
  {rest}
}}
"""
NET = """
net (float[n, 6, 4, 4] x) => (float[n, 6, 4, 4] y) {
  apart = Constant <value_ints = [0, 2, 3, 4, 4]> ()
  whole = Constant <value_ints = [0, 6, 4, 4]> ()
  p = Conv <group = 2> (x, w1)
  a = Reshape (p, apart)
  b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
  c = Reshape (b, whole)
  q = Conv <group = 6, pads = [1, 1, 1, 1]> (c, w2)
  s = Sum (q, p)
  r = Relu (s)
  y = Conv <group = 2> (r, w3)
}
"""
WEIGHTS = {"w1": (6, 3, 1, 1), "w2": (6, 1, 3, 3), "w3": (6, 3, 1, 1)}


def shuffle(n="n", apart=(0, 2, 3, 4, 4), order=(0, 2, 1, 3, 4), rest="y = Reshape (b, whole)"):
    return graph(SHUFFLE.format(n=n, apart=list(apart), order=list(order), rest=rest))


def kinds(model):
    return Counter(node.op_type for node in model.graph)


def run(model, rows):
    with Session(model) as session:
        return session.run({"x": rows})["y"]


@pytest.mark.parametrize("n", ["n", "3"])
def test_a_channel_shuffle_becomes_a_gather_of_the_same_numbers(n):
    model = shuffle(n)
    rows = RNG.standard_normal((3, 6, 4, 4)).astype(np.float32)
    before = run(model, rows)
    write_native(model)
    assert kinds(model) == {"Gather": 1}
    np.testing.assert_array_equal(run(model, rows), before)
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    "given",
    [
        {"order": (0, 1, 2, 4, 3)},  # rows and columns exchanged
        {"apart": (0, 6, 2, 2, 4), "order": (0, 1, 3, 2, 4)},  # rows are taken apart, not channels
        {"apart": (0, 3, 2, 4, 4), "order": (0, 1, 2, 3, 4)},  # nothing moves
        {"apart": (2, 3, -1, 4, 4)},  # samples are taken apart
        {"rest": "c = Reshape (b, whole)\n  d = ReduceSum <keepdims = 0> (b)\n  y = Add (c, d)"},  # read elsewhere
    ],
)
def test_what_is_no_channel_shuffle_is_left_alone(given):
    model = shuffle(**given)
    before = kinds(model)
    write_native(model)
    assert kinds(model) == before


def test_a_shuffling_network_stays_in_8_bits_and_is_not_transposed_in_five_axes(tmp_path):
    model = graph(NET, WEIGHTS)
    feeds = [{"x": RNG.standard_normal((4, 6, 4, 4)).astype(np.float32)} for _ in range(6)]
    wanted = run(model, feeds[0]["x"])
    report = bevel.optimize(model, EXTREMES, calibration=feeds, max_error=0.05)
    assert report.error < 0.05
    assert np.abs(run(model, feeds[0]["x"]) - wanted).max() < 0.1 * np.abs(wanted).max()
    compiled = operators(model, tmp_path)
    assert compiled["QLinearConv"] == 3 and compiled["QLinearAdd"] == 1 and compiled["Gather"] == 1
    assert not {"Sum", "Conv", "FusedConv", "Reshape"} & set(compiled)
