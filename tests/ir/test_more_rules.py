"""Rules where the conformance data leaves nothing free: single channels, subgraphs, sizes that end up as numbers."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.equivariance import Checked, check_rule
from bevel.ir import control, coupling
from bevel.ir.coupling import Coupling
from bevel.ir.groups import Group, groups
from bevel.ir.site import Site
from tests.graphs import graph


@dataclass(frozen=True)
class Situation:
    """A graph with its inputs by shape, floats unless a type is given, and how many dimensions are free in it."""

    text: str
    inputs: dict[str, tuple[int, ...] | np.ndarray]
    permuted: int
    selected: int

    def check(self) -> Checked:
        header = '<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]> '
        model = onnx.parser.parse_model(header + self.text)
        random = np.random.default_rng(0)
        feed = {
            name: random.standard_normal(shape).astype(np.float32) if isinstance(shape, tuple) else shape
            for name, shape in self.inputs.items()
        }
        return check_rule(ir.from_proto(model), feed)


def bytes_of(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


SITUATIONS = {
    "ConvInteger": Situation(
        """
        g (uint8[2, 4, 5, 5] x, uint8[6, 2, 3, 3] w, uint8 xz) => (int32[2, 6, 3, 3] y) {
          y = ConvInteger <group = 2> (x, w, xz)
        }
        """,
        {"x": bytes_of(2, 4, 5, 5), "w": bytes_of(6, 2, 3, 3), "xz": np.array(7, np.uint8)},
        *(4, 3),  # samples, groups, outputs and inputs of each; inputs would have to respect zero points
    ),
    "Conv": Situation(
        """
        g (float[2, 4, 5, 5] x, float[6, 2, 3, 3] w, float[6] b) => (float[2, 6, 3, 3] y) {
          y = Conv <group = 2> (x, w, b)
        }
        """,
        {"x": (2, 4, 5, 5), "w": (6, 2, 3, 3), "b": (6,)},
        *(4, 4),
    ),
    "DeformConv": Situation(
        """
        g (float[2, 4, 5, 5] x, float[6, 4, 3, 3] w, float[2, 18, 3, 3] o, float[6] b) => (float[2, 6, 3, 3] y) {
          y = DeformConv (x, w, o, b)
        }
        """,
        {"x": (2, 4, 5, 5), "w": (6, 4, 3, 3), "o": (2, 18, 3, 3), "b": (6,)},
        *(2, 2),
    ),
    "If": Situation(
        """
        g (bool c, float[4, 6] x, float[6, 5] a, float[6, 5] b, float[5, 3] w) => (float[4, 3] z) {
          y = If (c) <
            then_branch = t () => (float[4, 5] p) { p = MatMul (x, a) },
            else_branch = e () => (float[4, 5] q) { q = MatMul (x, b) }
          >
          z = MatMul (y, w)
        }
        """,
        {"c": np.array(False), "x": (4, 6), "a": (6, 5), "b": (6, 5), "w": (5, 3)},
        *(4, 4),
    ),
    "Loop": Situation(
        """
        g (float[4, 6] x, float[6, 6] w, float[6, 5] o) => (float[4, 5] z, float[3, 4, 6] all)
        <int64 trips = {3}, bool yes = {1}> {
          y, all = Loop (trips, yes, x) <
            body = b (int64 i, bool go, float[4, 6] h) => (bool on, float[4, 6] n, float[4, 6] each) {
              on = Identity (go)
              m = MatMul (h, w)
              n = Tanh (m)
              each = Sigmoid (m)
            }
          >
          z = MatMul (y, o)
        }
        """,
        {"x": (4, 6), "w": (6, 6), "o": (6, 5)},
        *(3, 3),
    ),
    "Scan": Situation(
        """
        g (float[4] s, float[7, 4] x, float[4, 5] o) => (float[5] z, float[4, 7] all) {
          t, all = Scan <num_scan_inputs = 1, scan_output_axes = [1],
            body = b (float[4] h, float[4] v) => (float[4] n, float[4] each) {
              n = Add (h, v)
              each = Relu (n)
            }
          > (s, x)
          z = MatMul (t, o)
        }
        """,
        {"s": (4,), "x": (7, 4), "o": (4, 5)},
        *(2, 2),
    ),
    "LinearRegressor": Situation(
        """
        g (float[4, 3] x) => (float[4, 2] y) {
          y = ai.onnx.ml.LinearRegressor <targets = 2, coefficients = [0.1, 0.5, -0.3, 0.7, 0.2, 0.9]> (x)
        }
        """,
        {"x": (4, 3)},
        *(1, 1),
    ),
    "LinearClassifier": Situation(
        """
        g (float[4, 3] x) => (int64[4] l, float[4, 2] y) {
          l, y = ai.onnx.ml.LinearClassifier
            <classlabels_ints = [3, 8], coefficients = [0.1, 0.5, -0.3, 0.7, 0.2, 0.9], intercepts = [0.1, 0.2]> (x)
        }
        """,
        {"x": (4, 3)},
        *(1, 1),
    ),
    "a sum over both axes": Situation(
        """
        g (float[4, 6] x) => (float y) {
          t = Transpose <perm = [1, 0]> (x)
          s = MatMul (t, x)
          r = Relu (s)
          y = ReduceSum <keepdims = 0> (r)
        }
        """,
        {"x": (4, 6)},
        *(2, 2),
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_a_rule_lets_free_is_free(name):
    checked = SITUATIONS[name].check()
    assert checked.disagreements == checked.skipped == ()
    assert (checked.permuted, checked.selected) == (SITUATIONS[name].permuted, SITUATIONS[name].selected)


# Planted lies about subgraphs.


def one_branch_only(site: Site, read: control.ReadGraph) -> None:
    for name in ("then_branch", "else_branch"):
        read(site.node.attributes[name].as_graph())
    site.set(0, site.facts.of(site.node.attributes["then_branch"].as_graph().outputs[0]) or ())


def a_state_that_comes_back_as_it_likes(site: Site, read: control.ReadGraph) -> None:
    body = site.node.attributes["body"].as_graph()
    site.facts.axes[body.inputs[2]] = site.facts.of(site.value(2))
    read(body)
    state, each = (site.facts.of(value) or () for value in body.outputs[1:])
    iterations = site.fresh_output(1)[:1]
    site.fix(iterations, "one entry an iteration")
    site.set(0, state)
    site.set(1, (*iterations, *each))


@pytest.mark.parametrize(
    ("name", "lie"), [("If", one_branch_only), ("Loop", a_state_that_comes_back_as_it_likes)], ids=["If", "Loop"]
)
def test_a_lie_about_a_subgraph_is_caught(name, lie, monkeypatch):
    monkeypatch.setitem(control.BODIES, name, lie)
    assert SITUATIONS[name].check().disagreements


def test_a_grouped_integer_convolution_that_forgets_its_groups_is_caught(monkeypatch):
    monkeypatch.setitem(coupling._RULES, ("", "ConvInteger"), lambda site: Coupling("n c *, o i *, . -> n o *"))
    assert SITUATIONS["ConvInteger"].check().disagreements


def test_an_output_of_another_size_than_stated_is_caught(monkeypatch):
    monkeypatch.setitem(coupling._RULES, ("", "Conv"), lambda site: Coupling("n c *, o i *, o -> n c *"))
    (found,) = SITUATIONS["Conv"].check().disagreements
    assert str(found) == "sizes y: its axes have sizes [2, 4, 3, 3] instead of (2, 6, 3, 3)"


def test_a_model_whose_outputs_change_from_run_to_run_is_skipped():
    text = "g (float[2, 3] x) => (int32[2, 20] y) { y = Multinomial <sample_size = 20> (x) }"
    assert Situation(text, {"x": (2, 3)}, 0, 0).check().skipped == ("its outputs differ from run to run",)
    held = Situation("g (float[3] x) => (float[3] y) { y = RandomNormalLike (x) }", {"x": (3,)}, 0, 0).check()
    assert (held.skipped, held.permuted, held.disagreements) == ((), 0, ())  # drawn the same, entry by entry


def test_constant_outputs_prove_nothing():
    checked = Situation("g (float[3] x) => (bool[3] y) { y = IsNaN (x) }", {"x": (3,)}, 0, 0).check()
    assert (checked.permuted, checked.disagreements) == (0, ())


# Sizes that are read


SIZES_READ = """
g (float[n, 6] x) => (float[n, 3] y, RESULT) {
  h = MatMul (x, w)
  s = Shape (h)
  STATEMENT
  y = MatMul (h, v)
}
"""


def hidden(result: str, statement: str) -> Group:
    text = SIZES_READ.replace("RESULT", result).replace("STATEMENT", statement)
    model = graph(text, {"w": (6, 8), "v": (8, 3), "v2": (8, 2)})
    return next(each for each in groups(model) if each.name == "w[1]")


def test_a_size_that_is_an_output_keeps_its_dimension_whole():
    found = hidden("int64[2] z", "z = Identity (s)")
    assert found.allows("permute")
    assert "its size is used as a number" in found.why("select")[0]


def test_a_size_that_shapes_a_tensor_follows():
    assert hidden("float[n, 2] z", "u = Relu (h)  r = Reshape (u, s)  z = MatMul (r, v2)").allows("select")


def test_sizes_may_be_gathered_out_of_joined_ones():
    """An edit leaves such graphs behind: sizes that only a run tells, taken from the operand that was there."""
    statement = "d = Concat <axis=0> (s, s)  e = Gather (d, k)  u = Relu (h)  r = Reshape (u, e)  z = MatMul (r, v2)"
    text = SIZES_READ.replace("RESULT", "float[n, 2] z").replace("STATEMENT", statement)
    model = graph(text.replace("{", "<int64[2] k = {2, 3}> {", 1), {"w": (6, 8), "v": (8, 3), "v2": (8, 2)})
    assert "w[1]" in [each.name for each in groups(model)]


@pytest.mark.parametrize(("mode", "place"), [("DCR", "w[1.2]"), ("CRD", "w[1.0]")])
def test_space_to_depth_puts_channels_innermost_or_outermost(mode: str, place: str) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 28]>
    g (float[n, 3, 8, 8] x) => (float[n, 5, 4, 4] y) <float[5, 20, 1, 1] w, float[5, 3, 1, 1] v> {{
      a = Conv (x, v)
      b = SpaceToDepth <blocksize = 2, mode = "{mode}"> (a)
      y = Conv (b, w)
    }}
    """
    model = onnx.parser.parse_model(text)
    for value in ("w", "v"):
        shape = (5, 20, 1, 1) if value == "w" else (5, 3, 1, 1)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), value))
    (found,) = [group for group in groups(bevel.load(model)) if group.name == "v[0]"]
    assert place in map(str, found.members)
