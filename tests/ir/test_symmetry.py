"""Scales, rotations and linear maps: all that is claimed is executed; networks have those that an expert knows."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import UnsupportedModel
from bevel.ir import action, coupling, passages
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Group, groups
from bevel.ir.site import Site
from bevel.transport import Moved, check_motions
from tests import zoo
from tests.graphs import graph
from tests.ir.cases import Form, cases, forms, in_processes, label
from tests.ir.test_contrib_rules import CASES as CONTRIB

KINDS = (Freedom.SCALE, Freedom.ROTATE, Freedom.LINEAR)
LEAST_OPERATORS = {Freedom.SCALE: 55, Freedom.ROTATE: 34, Freedom.LINEAR: 33}
LEAST_DIMENSIONS = {Freedom.SCALE: 1800, Freedom.ROTATE: 1000, Freedom.LINEAR: 950}


# Conformance data


@dataclass
class Tally:
    """What a run over the corpus found, by kind."""

    dims: Counter[Freedom] = field(default_factory=Counter)
    operators: set[tuple[Freedom, str]] = field(default_factory=set)
    disagreements: list[str] = field(default_factory=list)

    def add(self, form: Form) -> None:
        try:
            moved = check_motions(form.model, form.feed)
        except UnsupportedModel:
            return
        for kind, trial in moved.trials.items():
            self.dims[kind] += trial.dims
            self.operators |= {(kind, label(*operator)) for operator in trial.operators}
        self.disagreements += [f"{form}: {each}" for each in moved.disagreements]

    def __add__(self, other: "Tally") -> "Tally":
        found = self.disagreements + other.disagreements
        return Tally(self.dims + other.dims, self.operators | other.operators, found)


def share(first: int, step: int) -> Tally:
    """Try every `step`-th case."""
    tally = Tally()
    for case in islice(cases(), first, None, step):
        for form in forms(case):
            tally.add(form)
    return tally


@pytest.mark.slow
def test_what_inputs_are_multiplied_by_is_found_again_in_the_outputs() -> None:
    tally = sum(in_processes(share), Tally())  # one test, since each process that runs some of several would make it
    assert tally.disagreements == []
    for kind in KINDS:
        assert len([operator for found, operator in tally.operators if found is kind]) >= LEAST_OPERATORS[kind]
        assert tally.dims[kind] >= LEAST_DIMENSIONS[kind]


@pytest.mark.parametrize("case", CONTRIB, ids=str)
def test_operators_of_onnx_runtime(case) -> None:
    assert check_motions(case.model, case.feed).disagreements == ()


def everything_moves(model: ir.Model, feed: dict[str, np.ndarray]) -> Moved:
    moved = check_motions(model, feed, interface=True)
    assert moved.disagreements == ()
    return moved


@pytest.mark.parametrize("style", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["gpt", "bert", "llama", "llama-fused", "vit", "resnet", "shufflenet", "unet", "swin"])
def test_networks_stay_the_same(name: str, style: str) -> None:
    feed = zoo.trials(name)[0][0]
    assert everything_moves(bevel.load(zoo.path(name, style)), feed).trials[Freedom.SCALE].dims > 0


# Planted lies


LIES = [
    ("Sigmoid", action.LINEAR, "test_sigmoid"),
    ("Softmax", action.HOMOGENEOUS, "test_softmax_axis_1"),
    ("Mul", action.ADDED, "test_mul"),
    ("Div", action.MULTIPLIED, "test_div"),
    ("LayerNormalization", action.LINEAR, "test_layer_normalization_2d_axis1"),
    ("Relu", action.LINEAR, "test_relu"),
    ("MatMul", action.DIVIDED, "test_matmul_2d"),
    ("ReduceMax", action.LINEAR, "test_reduce_max_do_not_keepdims_random"),
    ("Add", action.JOINED, "test_add_bcast"),
    ("Tanh", action.HOMOGENEOUS, "test_tanh"),
    ("PRelu", action.MULTIPLIED, "test_prelu_example"),
]


@pytest.mark.parametrize(("op_type", "lie", "name"), LIES, ids=[f"{op_type}-{name}" for op_type, _, name in LIES])
def test_an_action_that_lies_is_caught(op_type, lie, name, monkeypatch) -> None:
    assert list(disagreements(name)) == []
    monkeypatch.setitem(coupling._ACTIONS, ("", op_type), lie)
    assert list(disagreements(name)) != []


def disagreements(name: str) -> Iterator[str]:
    (case,) = [case for case in cases() if case.name == name]
    for form in forms(case):
        yield from map(str, check_motions(form.model, form.feed).disagreements)


def test_a_sum_that_passes_for_a_move_is_caught(monkeypatch) -> None:
    text = """
    g (float[4, 6] x) => (float[4] y) <int64[1] last = {1}> { h = Neg (x)  y = ReduceSum <keepdims = 0> (h, last) }
    """
    model, feed = graph(text), {"x": np.arange(24, dtype=np.float32).reshape(4, 6)}
    assert check_motions(model, feed).disagreements == ()
    monkeypatch.setitem(coupling._ACTIONS, ("", "ReduceSum"), action.MOVED)
    assert check_motions(model, feed).disagreements != ()


def test_a_mean_that_is_forgotten_is_caught(monkeypatch) -> None:
    model, feed = stream(norm="LayerNormalization")
    assert everything_moves(model, feed).trials[Freedom.ROTATE].dims == 1
    monkeypatch.setitem(coupling._ACTIONS, ("", "LayerNormalization"), action.ROOT_MEAN_SQUARE)
    assert {found.kind for found in check_motions(model, feed, interface=True).disagreements} == {Freedom.ROTATE}


def test_a_gain_that_is_not_folded_is_caught(monkeypatch) -> None:
    model, feed = stream()
    monkeypatch.setattr("bevel.transport._with_ones", lambda subject, gains: subject)
    assert {found.kind for found in check_motions(model, feed, interface=True).disagreements} == {Freedom.ROTATE}


# What networks allow


def group(model: ir.Model, member: str) -> Group:
    return next(each for each in groups(model) if member in map(str, each.members))


def exponents(found: Group, kind: str = "scale") -> list[str]:
    return [str(motion) for motion in found.motions(kind)]


def feed_forward(between: str) -> Group:
    text = f"""
    mlp (float[n, 6] x) => (float[n, 3] y) {{
      a = MatMul (x, up)
      h = Add (a, b)
      {between}
      y = MatMul (r, down)
    }}
    """
    return group(graph(text, {"up": (6, 8), "b": (8,), "down": (8, 3), "s": (8,)}), "up[1]")


def test_relu_lets_scales_through_but_no_mixing() -> None:
    found = feed_forward("r = Relu (h)")
    assert exponents(found) == ["up[1]: +1, b[0]: +1, down[0]: -1"]
    assert found.allows("scale") and not found.allows("rotate") and not found.allows("linear")
    assert found.why("linear") == ("Relu '': it works on each entry by itself",)
    assert str(found).split()[2:5] == ["permute", "select", "scale"]


def test_gelu_lets_nothing_through() -> None:
    found = feed_forward("r = Gelu (h)")
    assert not found.allows("scale")
    assert found.why("scale") == ("Gelu '': it is not linear",)


def test_nothing_between_two_products_lets_everything_through() -> None:
    found = feed_forward("r = Neg (h)")
    assert found.allows("scale") and found.allows("rotate") and found.allows("linear")
    assert exponents(found, "linear") == ["up[1]: +1, b[0]: +1, down[0]: -1"]
    assert exponents(found, "rotate") == ["up[1]: +1, b[0]: +1, down[0]: +1"]


def test_a_square_scales_twice() -> None:
    assert exponents(feed_forward("r = Mul (h, h)")) == ["up[1]: +1, b[0]: +1, down[0]: -2"]


def test_a_vector_takes_up_a_scale_on_its_own() -> None:
    found = feed_forward("r = Mul (h, s)")
    assert exponents(found) == ["up[1]: +1, b[0]: +1, s[0]: -1", "s[0]: +1, down[0]: -1"]
    (turning,) = found.motions("rotate")
    assert [gain.name for gain in turning.folds] == ["s"] and not found.allows("linear")


def test_what_is_added_to_all_entries_keeps_them_as_they_are() -> None:
    found = feed_forward("one = Constant <value = float {1.0}> ()  r = Add (h, one)")
    assert found.why("scale") == ("Add '': not all that it adds up has this axis",)


def test_the_up_path_of_swiglu_scales() -> None:
    model = bevel.load(zoo.path("llama", "dynamo"))
    found = group(model, "blocks.0.down.weight[1]")
    assert exponents(found) == ["blocks.0.gate_up.weights.1.weight[0]: +1, blocks.0.down.weight[1]: -1"]


def test_heads_of_attention_mix_but_where_rotary_turns_pairs() -> None:
    model = bevel.load(zoo.path("gpt", "dynamo"))
    turned = group(model, "blocks.0.qkv.weight[0.0.1]")
    assert exponents(turned, "linear") == [
        "blocks.0.qkv.weight[0.0.1]: +1, blocks.0.qkv.weight[0.1.1]: -1, "
        "blocks.0.qkv.bias[0.0.1]: +1, blocks.0.qkv.bias[0.1.1]: -1"
    ]
    assert group(model, "blocks.0.qkv.weight[0.2.1]").allows("linear")
    rotary = bevel.load(zoo.path("llama", "dynamo"))
    assert group(rotary, "blocks.0.qkv.weights.2.weight[0.1]").allows("linear")
    pairs = group(rotary, "blocks.0.qkv.weights.0.weight[0.2.0]")
    assert pairs.allows("scale") and not pairs.allows("rotate")


def test_each_gain_of_a_residual_stream_scales_into_what_follows() -> None:
    found = group(bevel.load(zoo.path("llama", "dynamo")), "tokens.weight[1]")
    assert exponents(found)[1] == (
        "blocks.0.norm2.weight[0]: +1, "
        "blocks.0.gate_up.weights.0.weight[1]: -1, blocks.0.gate_up.weights.1.weight[1]: -1"
    )
    (turning,) = found.motions("rotate")  # the norm is written out, as a mean of squares
    assert len(turning.folds) == 5 and not turning.keeps_mean


def test_normalised_channels_scale_through_relu() -> None:
    found = group(bevel.load(zoo.path("resnet", "dynamo")), "features.1.branch.0.0.weight[0]")
    assert exponents(found)[1] == (
        "features.1.branch.0.1.weight[0]: +1, features.1.branch.0.1.bias[0]: +1, features.1.branch.1.weight[1]: -1"
    )


def stream(gain: str = "gain", norm: str = "RMSNormalization") -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A residual stream with one block between embedding and head, both behind a norm."""
    text = f"""
    <ir_version: 10, opset_import: ["" : 23]>
    llm (int64[n] ids, float[6] given) => (float[n, 5] y) {{
      x = Gather (table, ids)
      a = {norm} (x, {gain})
      b = MatMul (a, up)
      c = Relu (b)
      d = MatMul (c, down)
      e = Add (x, d)
      f = {norm} (e, last)
      y = MatMul (f, head)
    }}
    """
    model = onnx.parser.parse_model(text)
    shapes = {"table": (9, 6), "gain": (6,), "up": (6, 8), "down": (8, 6), "last": (6,), "head": (6, 5)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    feed = {"ids": np.array([3, 1, 4, 1, 5]), "given": random.standard_normal(6).astype(np.float32)}
    return bevel.load(model), feed


def test_a_stream_turns_once_its_gains_are_folded() -> None:
    model, feed = stream()
    found = group(model, "table[1]")
    assert not found.allows("linear")
    (motion,) = found.motions("rotate")
    assert str(motion) == "table[1]: +1, up[0]: +1, down[1]: +1, head[0]: +1"
    assert [gain.name for gain in motion.folds] == ["gain", "last"]
    assert everything_moves(model, feed).trials[Freedom.ROTATE].dims == 1


def test_a_gain_that_is_an_input_cannot_be_folded() -> None:
    found = group(stream("given")[0], "table[1]")
    assert not found.allows("rotate")
    assert "RMSNormalization '': a rotation does not commute with its gain" in " ".join(found.why("rotate"))


# What follows from the definitions


@pytest.mark.parametrize("name", ["gpt", "llama-fused", "resnet", "shufflenet", "vit", "lstm"])
def test_linear_maps_are_rotations_and_scales_too(name: str) -> None:
    for found in groups(bevel.load(zoo.path(name, "dynamo"))):
        assert found.allows("rotate") or not found.allows("linear")
        assert found.allows("scale") or not found.allows("linear")
        for kind in KINDS:
            assert bool(found.why(kind)) != found.allows(kind)


def test_nothing_is_read_before_it_is_asked_for(monkeypatch) -> None:
    model = graph("g (float[n, 6] x) => (float[n, 3] y) { y = MatMul (x, w) }", {"w": (6, 3)})
    monkeypatch.setattr("bevel.ir.symmetry.strands", lambda site: pytest.fail("read"))
    assert [each.allows("select") for each in groups(model)] == [False, False]


def test_what_a_body_without_a_rule_reads_stays_as_it_is() -> None:
    text = """
    g (seq(float[4, 6]) x, float[4, 6] v) => (seq(float[4, 5]) z, float[4, 5] y) {
      z = SequenceMap (x) <body = b (float[4, 6] each) => (float[4, 5] p) { h = Neg (each)  p = MatMul (h, w) }>
      y = MatMul (v, w)
    }
    """
    for found in groups(graph(text, {"w": (6, 5)})):
        assert found.motions("scale") == []


BRANCHES = """
g (bool c, float[4, 6] x) => (float[4, 3] z) {
  h = MatMul (x, w)
  y = If (c) <
    then_branch = t () => (float[4, 5] p) { p = MatMul (h, a) },
    else_branch = e () => (float[4, 5] q) { q = MatMul (h, b) }
  >
  z = MatMul (y, v)
}
"""
LOOP = """
g (int64 turns, bool go, float[4, 6] x) => (float[4, 3] z, float[n, 4, 3] each) {
  h = MatMul (x, w)
  y, all = Loop (turns, go, h) <
    body = b (int64 turn, bool on, float[4, 5] s) => (bool more, float[4, 5] t, float[4, 5] o) {
      more = Identity (on)
      t = Mul (s, a)
      o = Neg (s)
    }
  >
  z = MatMul (y, v)
  each = MatMul (all, last)
}
"""
X = {"x": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)}


def branches() -> tuple[ir.Model, dict[str, np.ndarray]]:
    return graph(BRANCHES, {"w": (6, 8), "a": (8, 5), "b": (8, 5), "v": (5, 3)}), {**X, "c": np.array(False)}


def loop() -> tuple[ir.Model, dict[str, np.ndarray]]:
    return graph(LOOP, {"w": (6, 5), "a": (5,), "v": (5, 3), "last": (5, 3)}), {
        **X,
        "turns": np.array(3),
        "go": np.array(True),
    }


def test_both_branches_follow_what_passes_into_them_and_out() -> None:
    model, feed = branches()
    assert exponents(group(model, "w[1]"), "linear") == ["w[1]: +1, a[0]: -1, b[0]: -1"]
    assert exponents(group(model, "v[0]"), "linear") == ["a[1]: +1, b[1]: +1, v[0]: -1"]
    everything_moves(model, feed)
    everything_moves(model, {**feed, "c": np.array(True)})


def test_what_a_loop_carries_scales_with_what_it_leaves() -> None:
    model, feed = loop()
    assert exponents(group(model, "w[1]")) == ["w[1]: +1, v[0]: -1, last[0]: -1"]
    assert everything_moves(model, feed).trials[Freedom.SCALE].dims == 1


@pytest.mark.parametrize(("made", "forgotten"), [(branches, 1), (loop, 1), (loop, 2), (loop, 3)])
def test_a_passage_that_is_forgotten_is_caught(made, forgotten: int, monkeypatch) -> None:
    def without(site: Site) -> list[passages.Passage]:
        return [each for place, each in enumerate(passages.passages(site)) if place != forgotten]

    model, feed = made()
    monkeypatch.setattr("bevel.ir.symmetry.passages", without)
    assert check_motions(model, feed, interface=True).disagreements != ()


def test_a_square_that_leaves_the_graph_binds_rotations() -> None:
    model = graph("g (float[n, 6] x) => (float[n, 8] y) { h = MatMul (x, up)  y = Mul (h, h) }", {"up": (6, 8)})
    assert not group(model, "up[1]").allows("rotate")
