"""Mixtures of experts are found from what they compute, in every form, and nothing else is taken for one."""

import numpy as np
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.errors import EditRefused
from bevel.ir.names import Names
from bevel.passes.base import REASSOCIATION_RTOL, Context, Preserving
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.mixtures import reading
from bevel.passes.mixtures.alignment import clusters, likeness, order
from bevel.passes.mixtures.choosing import Routing
from bevel.passes.mixtures.fused import dequantized
from bevel.passes.mixtures.gating import KINDS, Gating
from bevel.passes.mixtures.recognition import mixtures
from bevel.passes.mixtures.writing import finish, mixed
from bevel.passes.verify import verify
from tests.graphs import graph
from tests.passes.mixture_graphs import (
    ACTIVE,
    END,
    EXPERTS,
    FORMS,
    GATHERED,
    HIDDEN,
    ROUTER,
    arranged,
    expected,
    feeds,
    mixture,
    of_text,
    weights,
)


def context(inputs=None):
    given = feeds(1) if inputs is None else inputs
    return Context(0, Calibration(lambda: given, "a test"), Execution())


@pytest.fixture(scope="module")
def arrays():
    return weights()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_description(form, arrays):
    model = mixture(form, arrays)
    (found,), refused = mixtures(model, context())
    assert not refused
    assert (found.active, found.gating, len(found.experts)) == (ACTIVE, Gating("chosen"), EXPERTS)
    for number, expert in enumerate(found.experts):
        for array, name in ((expert.ups[0], "first"), (expert.ups[1], "second"), (expert.down, "third")):
            np.testing.assert_allclose(array, arrays[name][number], atol=1e-6)
        assert not np.any(expert.constant)
    (feed,) = feeds(1)
    with Session(model) as session:
        np.testing.assert_allclose(session.run(feed)["y"], expected(feed["x"], arrays), atol=1e-5)


def test_sizes_may_come_from_anywhere(arrays):
    sizes = """
      around = Shape (x) batch = Gather (around, zero) length = Gather (around, one) count = Mul (batch, length)
      inner = Constant <value_ints = [2, 8]> () pairs = Concat <axis = 0> (count, inner)
    """
    text = ROUTER + GATHERED.replace("pairs = Constant <value_ints = [-1, 2, 8]> ()", sizes) + END
    model = of_text(text, arranged(arrays))
    assert bevel.optimize(model, "merge-experts{ratio=0}", calibration=feeds(1)).steps[0].error <= REASSOCIATION_RTOL


def test_what_is_written_computes_the_same_and_is_found_again(arrays):
    model = mixture("gathered", arrays)
    before = model.clone()
    (found,), _ = mixtures(model, context())
    mixed(model, found, found.experts, Routing(found.active), Names(model))
    finish(model)
    assert verify(before, model, feeds(2), Preserving()).error <= REASSOCIATION_RTOL
    assert [node.op_type for node in model.graph].count("TopK") == 1
    (again,), _ = mixtures(model, context())
    assert again.gating == found.gating
    np.testing.assert_allclose(again.experts[3].down, found.experts[3].down, atol=1e-6)


@pytest.mark.parametrize(("kind", "norm"), [("relu", 0), ("gelu", 1), ("silu", 0)])
def test_the_operator_with_constants_and_each_activation(kind, norm):
    text = f"""m (float[n, 8] x) => (float[n, 8] y) {{
      l = MatMul (x, router)
      y = com.microsoft.MoE <k = 2, activation_type = "{kind}", normalize_routing_weights = {norm}> (x, l, a, b, c, d)
    }}"""
    shapes = {"router": (8, 3), "a": (3, 12, 8), "b": (3, 12), "c": (3, 8, 12), "d": (3, 8)}
    model = graph(text, shapes)
    (found,), _ = mixtures(model, context([{"x": np.ones((6, 8), np.float32)}]))
    assert found.gating == Gating("chosen" if norm else "softmax")
    assert np.any(found.experts[0].constant)


def test_integers_are_restored():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, 3, 4), np.uint8)
    scales, zeros = rng.random((2, 3, 2)).astype(np.float32), rng.integers(0, 256, (2, 3, 1), np.uint8)
    found = dequantized(codes, scales, zeros, 4)
    assert found[1, 2, 5] == pytest.approx(scales[1, 2, 1] * ((codes[1, 2, 2] >> 4) - float(zeros[1, 2, 0] >> 4)))


def test_experts_of_integers_are_found_as_what_they_were():
    text = "m (float[b, n, 32] x) => (float[b, n, 32] y) { h = MatMul (x, up) r = Relu (h) y = MatMul (r, down) }"
    model = graph(text, {"up": (32, 64), "down": (64, 32)})
    rng = np.random.default_rng(0)
    inputs = [{"x": rng.standard_normal((2, 16, 32)).astype(np.float32)}]
    bevel.optimize(model, "convert-moe{experts=2 active=2 shared=0 emit=qmoe bits=8 refit=false}", calibration=inputs)
    (found,), _ = mixtures(model, context(inputs))
    assert (found.form, found.active, found.gating) == ("QMoE", 2, Gating("one"))


def test_layers_after_each_other_are_found_whose_experts_have_as_many_entries_as_channels():
    """Rows, channels and entries are told apart though they are as many, and what stands behind conditions is known."""
    layer = "{1} = MatMul ({0}, up{2}) {1}r = Relu ({1}) {1}d = MatMul ({1}r, down{2}) {3} = Add ({0}, {1}d)"
    body = layer.format("x", "h", 0, "z") + " " + layer.format("z", "g", 1, "y")
    model = graph(
        f"m (float[b, n, 8] x) => (float[b, n, 8] y) {{ {body} }}",
        {f"{name}{place}": shape for place in (0, 1) for name, shape in (("up", (8, 32)), ("down", (32, 8)))},
    )
    inputs = [{"x": np.random.default_rng(0).standard_normal((2, 16, 8)).astype(np.float32)}]
    bevel.optimize(model, "convert-moe{experts=4 active=2 shared=0 refit=false}", calibration=inputs)
    found, _ = mixtures(model, context(inputs))
    assert [(each.active, len(each.experts), each.experts[0].size) for each in found] == [(2, 4, 8)] * 2


def test_sizes_that_no_exporter_says_are_measured(arrays):
    model = mixture("all", arrays)
    for node in model.graph:
        if node.outputs[0].name in ("l", "p", "v", "i"):
            for value in node.outputs:
                value.shape = None
    (found,), _ = mixtures(model, context())
    assert (found.gating, len(found.experts)) == (Gating("chosen"), EXPERTS)


def test_a_choice_by_the_largest_is_named(arrays):
    text = ROUTER.replace("v, i = TopK <axis = -1> (p, k)", "i = ArgMax <axis = -1> (p) v = ReduceMax (p, minus)")
    one = GATHERED.replace("[1, 2, 1]", "[1, 1, 1]").replace("[-1, 2, 8]", "[-1, 1, 8]")
    model = of_text(text + one + END, arranged(arrays))
    found, (refused,) = mixtures(model, context())
    assert not found and "it takes the best expert by ArgMax" in str(refused)


LIMITED = """
  rows = Reshape (x, flat)
  l = MatMul (rows, router)
  s0 = Sigmoid (l)
  s1 = Add (s0, correction)
  apart = Constant <value_ints = [-1, 2, 2]> ()
  s2 = Reshape (s1, apart)
  best = ReduceMax <keepdims = 0> (s2, minus)
  whole, where = TopK <axis = -1> (best, one)
  groups = Constant <value_ints = [2]> ()
  ends = Constant <value_floats = [0.0, 1.0]> ()
  hot = OneHot <axis = -1> (where, groups, ends)
  wide = Unsqueeze (hot, minus)
  near = ReduceSum <keepdims = 0> (wide, one)
  s3 = Mul (s2, near)
  all = Constant <value_ints = [-1, 4]> ()
  s4 = Reshape (s3, all)
  v, i = TopK <axis = -1> (s4, k)
  p = GatherElements <axis = 1> (s0, i)
  t = ReduceSum <keepdims = 1> (p, minus)
  g0 = Div (p, t)
  factor = Constant <value_float = 2.5> ()
  g = Mul (g0, factor)
"""


def test_routers_that_no_form_says_stay_as_nodes(arrays):
    """Sigmoids, a correction for the choice alone, one of two groups of experts: as DeepSeek-V3 has it."""
    given = {**arranged(arrays), "correction": np.array([0.1, -0.1, 0.05, 0.0], np.float32)}
    model = of_text(LIMITED + GATHERED + END, given)
    inputs = feeds(2)
    (found,), _ = mixtures(model, context(inputs))
    assert (found.gating.kind, found.active) == ("router", 2)
    gates = found.gating.gates(np.array([[3.0, -2.0, 1.0, 1.0]]), 2)
    np.testing.assert_allclose(gates, [[2.5 * 0.8887, 2.5 * 0.1113, 0, 0]], atol=1e-3)  # not those of the other group
    same = model.clone()
    assert bevel.optimize(same, "merge-experts{ratio=0}", calibration=inputs).steps[0].error <= REASSOCIATION_RTOL
    (again,), _ = mixtures(same, context(inputs))
    assert again.gating.kind == "router"
    with pytest.raises(EditRefused, match="which choose 2 experts: 1 are too few"):
        bevel.optimize(model.clone(), "prune-experts{experts=1}", calibration=inputs)
    few = model.clone()
    (step,) = bevel.optimize(few, "prune-experts{experts=2}", calibration=inputs).steps  # checked against its numbers
    assert step.error > 0.01
    (fewer,), _ = mixtures(few, context(inputs))
    assert len(fewer.experts) == 2


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("og = Mul (os, gc)", "o2 = Mul (os, os) og = Mul (o2, gc)", "nearest gates known"),
        ("s = Sigmoid (a)", "a0 = Mul (a, gc) s = Sigmoid (a0)", "comes of the choice"),
        ("os = Squeeze (o, minus)", "o1 = Squeeze (o, minus) os = MatMul (o1, extra)", "is not the last layer"),
        ("b = Mul (a, s)", "b = Identity (a)", "nothing bends"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(old, new, why, arrays):
    text = (ROUTER + GATHERED).replace(old, new)
    if why == "comes of the choice":
        gate = "gs = Reshape (g, minus) gc = Unsqueeze (gs, minus)"
        text = gate.join(text.split("gs = Reshape (g, minus)\n  gc = Unsqueeze (gs, minus)"))
        text = text.replace(gate, "").replace("ids = Reshape", f"{gate} ids = Reshape", 1)
    if why == "nothing bends":
        text = text.replace("q = Mul (b, u)", "q = Add (b, u)")
    given = {**arranged(arrays), "extra": np.eye(8, dtype=np.float32)}
    found, refused = mixtures(of_text(text + END, given), context())
    assert not found
    assert why in " ".join(map(str, refused))


def test_a_choice_without_experts_is_no_router():
    model = graph(
        """m (float[n, 8] x) => (float[n, 2] y) { k = Constant <value_ints = [2]> ()
        l = MatMul (x, w) v, i = TopK (l, k) y = Softmax (v) }""",
        {"w": (8, 5)},
    )
    found, (refused,) = mixtures(model, context([{"x": np.ones((4, 8), np.float32)}]))
    assert not found
    assert "no router" in refused.why


def test_a_description_that_lies_is_refused(monkeypatch, arrays):
    read = reading.experts

    def swapped(*given):
        found = list(read(*given))
        return iter([found[1], found[0], *found[2:]])

    monkeypatch.setattr("bevel.passes.mixtures.members.experts", swapped)
    found, (refused,) = mixtures(mixture("gathered", arrays), context())
    assert not found
    assert "away from what its experts give" in refused.why


@pytest.mark.parametrize("kind", KINDS)
def test_gates_add_up_over_those_that_are_taken(kind):
    logits = np.random.default_rng(0).standard_normal((5, 4))
    gates = Gating(kind, 0.5).gates(logits, 3)
    assert ((gates > 0).sum(1) == 3).all()
    if kind in ("chosen", "sigmoid-share"):
        np.testing.assert_allclose(gates.sum(1), 0.5)


def test_the_order_is_found_in_which_experts_are_alike(arrays):
    (found,), _ = mixtures(mixture("gathered", arrays), context())
    expert = found.experts[0]
    shuffled = expert.ordered(np.random.default_rng(1).permutation(HIDDEN))
    assert likeness(expert, shuffled) < 0.5
    assert likeness(expert, shuffled.ordered(order(shuffled, expert))) == pytest.approx(1)


def test_groups_are_of_what_is_nearest():
    nearness = np.array([[1, 0, 0.5, 0], [0, 1, 0, 0.9], [0.5, 0, 1, 0], [0, 0.9, 0, 1]])
    assert clusters(nearness, 3) == [[0], [1, 3], [2]]
    assert clusters(nearness, 1) == [[0, 1, 2, 3]]
