"""Heads that put their channels in orders of their own: executed, and refused where something ties them together."""

import numpy as np
import pytest

from bevel.backends.onnxruntime import Session
from bevel.errors import EditRefused
from bevel.ir import within
from bevel.ir.edit import permute
from bevel.ir.groups import analyse
from bevel.ir.plan import plan
from bevel.ir.provenance import Provenance, set_provenance
from bevel.ir.within import hosts, permute_within
from tests import zoo
from tests.graphs import graph
from tests.passes.nets import GROUPED, GROUPED_WEIGHTS

RNG = np.random.default_rng(0)
TOLERANCE = 1e-5
"""Relative to the largest output: float32 sums of some dozen products, in another order."""

# The same angle for all heads, then for each head; the product of each head with each other.
TURNED = """
turned (float[n, s, 6] x) => (float[n, s, 6] y) <int64[4] split = {0, -1, 2, 3}, int64[3] flat = {0, -1, 6}> {
  q = MatMul (x, w)
  h = Reshape (q, split)
  t = Mul (h, angles)
  r = Reshape (t, flat)
  y = MatMul (r, wo)
}
"""
GRAM = """
gram (float[n, 6] x) => (float[n, 5] y) <int64[3] split = {0, 2, 3}, int64[2] flat = {0, 4}> {
  q = MatMul (x, w)
  h = Reshape (q, split)
  t = Transpose <perm = [0, 2, 1]> (h)
  g = MatMul (h, t)
  f = Reshape (g, flat)
  y = MatMul (f, wo)
}
"""
GRAM_WEIGHTS = {"w": (6, 6), "wo": (4, 5)}


def answer(model, feed):
    with Session(model, threads=1) as session:
        return next(iter(session.run(feed).values()))


def free(analysis):
    """The groups that can be ordered head by head, with the number of heads."""
    return {group.name: heads.size for group, heads in hosts(analysis, analysis.groups).items()}


def shuffled(analysis):
    return {
        name: np.stack([RNG.permutation(analysis[name].size) for _ in range(heads)])
        for name, heads in free(analysis).items()
    }


def difference(before, after):
    return np.abs(before - after).max() / np.abs(before).max()


@pytest.mark.parametrize(
    ("name", "style", "groups"),
    [("bert", "dynamo", 4), ("gpt", "torchscript", 4), ("llama", "dynamo", 4), ("swin", "dynamo-optimized", 3)],
)
def test_real_layouts_stay_exact(name, style, groups):
    from bevel.frontends.onnx import load

    model = load(zoo.model(name, style))
    feed, _ = zoo.trials(name)[0]
    before = answer(model, feed)
    analysis = analyse(model)
    orders = shuffled(analysis)
    assert len(orders) == groups
    permute_within(analysis, orders)
    assert difference(before, answer(model, feed)) < TOLERANCE


def grouped():
    return graph(GROUPED, GROUPED_WEIGHTS)


FEED = {"x": RNG.standard_normal((2, 5, 8)).astype(np.float32)}


def test_queries_follow_the_key_head_that_they_share():
    model = grouped()
    before = answer(model, FEED)
    analysis = analyse(model)
    assert free(analysis) == {"wq[1.1]": 2, "wq[1.2]": 2, "wv[1.1]": 2}
    permute_within(analysis, {"wq[1.2]": np.array([[2, 0, 1], [0, 2, 1]])})
    assert difference(before, answer(model, FEED)) < TOLERANCE
    (cut,) = (part for tensor in plan(model).tensors if "wk" in tensor.names for part in tensor.cuts.values())
    assert cut.kept.tolist() == [2, 0, 1, 3, 5, 4]


@pytest.mark.parametrize(("name", "missing"), [("wq[1.2]", "wk"), ("wv[1.1]", "wo")])
def test_a_tensor_that_does_not_follow_is_seen(name, missing):
    model = grouped()
    kept = model.graph.initializers[missing].const_value
    before = answer(model, FEED)
    permute_within(analyse(model), {name: np.array([[2, 0, 1], [0, 2, 1]])})
    model.graph.initializers[missing].const_value = kept
    assert difference(before, answer(model, FEED)) > 0.01


@pytest.mark.parametrize(
    ("text", "weights"),
    [(TURNED, {"w": (6, 6), "angles": (3,), "wo": (6, 6)}), (GRAM, GRAM_WEIGHTS)],
    ids=["angles", "gram"],
)
def test_what_ties_heads_together_is_refused(text, weights):
    model = graph(text, weights)
    analysis = analyse(model)
    (name,) = [group.name for group in analysis.groups if group.size == 3 and "w[" in group.name]
    orders = {name: np.array([[1, 2, 0], [0, 2, 1]])}
    assert free(analysis) == {}
    with pytest.raises(EditRefused, match="ties them together"):
        permute_within(analysis, orders)
    permute(analysis, {name: orders[name][0]})  # one order for all heads is another matter


def test_what_would_come_of_heads_that_are_tied(monkeypatch):
    monkeypatch.setattr(within._Nodes, "agree", lambda *_: True)
    model, feed = graph(GRAM, GRAM_WEIGHTS), {"x": FEED["x"][0, :, :6]}
    before = answer(model, feed)
    permute_within(analyse(model), {"w[1.1]": np.array([[1, 2, 0], [0, 2, 1]])})
    assert difference(before, answer(model, feed)) > 0.01


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 2, 3), (5, 2, 3)])
def test_each_head_may_turn_by_its_own_angles(shape):
    model = graph(TURNED, {"w": (6, 6), "angles": shape, "wo": (6, 6)})
    feed = {"x": FEED["x"][:, :, :6]}
    before, kept = answer(model, feed), model.graph.initializers["angles"].const_value
    analysis = analyse(model)
    (name,) = free(analysis)
    permute_within(analysis, {name: np.array([[1, 2, 0], [0, 2, 1]])})
    assert difference(before, answer(model, feed)) < TOLERANCE
    with pytest.raises(EditRefused, match="in another way for each place"):
        plan(model)
    model.graph.initializers["angles"].const_value = kept
    assert difference(before, answer(model, feed)) > 0.01


def test_angles_of_heads_that_are_a_parameter_are_refused():
    model = graph(TURNED, {"w": (6, 6), "angles": (2, 3), "wo": (6, 6)})
    set_provenance(model.graph.initializers["angles"], Provenance(("angles",), trainable=True))
    assert free(analyse(model)) == {}


def test_orders_that_are_none_are_refused():
    analysis = analyse(grouped())
    for orders in ([[0, 1, 2]], [[0, 1, 1], [0, 1, 2]]):
        with pytest.raises(EditRefused, match="no permutations of 3 entries for each of 2 heads"):
            permute_within(analysis, {"wq[1.2]": np.array(orders)})
