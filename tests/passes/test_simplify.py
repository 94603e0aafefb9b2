import numpy as np
import onnx
import pytest

import bevel
from bevel.passes.pipeline import optimize
from bevel.passes.simplify import Simplify
from bevel.testing import check_pass
from tests.graphs import graph, mlp, proto


def operators(model):
    return [node.op_type for node in model.graph]


def test_identities_go_and_output_names_stay():
    model = graph(
        "m (float[2] x) => (float[2] y) { a = Identity (x)  b = Relu (a)  c = Identity (b)  y = Identity (c) }"
    )
    check_pass(Simplify(), model)
    optimize(model, "simplify")
    assert operators(model) == ["Relu"]
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity (x)",
        "y = Identity (x)  z = Identity (x)",
        "y = Relu (x)  z = Identity (y)",
        "a = Relu (x)  y = Identity (a)  z = Identity (a)",
        "a = Relu (x)  b = Relu (x)  y = Identity (a)  z = Identity (b)",
        "y = Identity (w)",
        "y = Relu (x)  z = Relu (x)",
    ],
)
def test_outputs_stay_distinct_and_made_by_a_node(body):
    outputs = "float[2] y, float[2] z" if " z " in f" {body}" else "float[2] y"
    model = graph(f"m (float[2] x) => ({outputs}) {{ {body} }}", {"w": (2,)})
    check_pass(Simplify(), model)


def test_repeated_computations_are_done_once():
    model = graph(
        "m (float[2] x) => (float[2] y) { a = Exp (x)  b = Exp (x)  c = Relu (a)  d = Relu (b)  y = Add (c, d) }"
    )
    check_pass(Simplify(), model)
    optimize(model, "simplify")
    assert operators(model) == ["Exp", "Relu", "Add"]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("a = RandomNormalLike (x)  b = RandomNormalLike (x)  y = Add (a, b)", 3),
        ("p = Sigmoid (x)  a = Bernoulli (p)  b = Bernoulli (p)  y = Add (a, b)", 4),
        ("a = Elu <alpha=1.0> (x)  b = Elu <alpha=2.0> (x)  y = Add (a, b)", 3),
        ("a, = Dropout (x)  b, m = Dropout (x)  c = Cast <to=1> (m)  d = Add (a, b)  y = Add (d, c)", 5),
    ],
)
def test_what_only_looks_repeated_stays(body, count):
    model = graph(f"m (float[2] x) => (float[2] y) {{ {body.replace('a, =', 'a =')} }}")
    optimize(model, "simplify", verify=False)
    assert len(operators(model)) == count


def test_dead_nodes_and_weights_go():
    model = graph("m (float[2] x) => (float[2] y) { a = Exp (x)  b = Mul (a, w)  y = Relu (x) }", {"w": (2,)})
    optimize(model, "simplify")
    assert operators(model) == ["Relu"]
    assert not model.graph.initializers


SCAN = """m (float[3, 2] x) => (float[2] last, float[3, 2] all) {
  last, all = Scan <num_scan_inputs=1, body = body (float[2] s, float[2] e) => (float[2] t, float[2] o) {
    a = Add (s, e)  t = Identity (a)  o = Identity (a)
  }> (zero, x)
}"""


def test_a_value_does_not_become_two_outputs_of_a_body():
    model = graph(SCAN, {"zero": (2,)})
    check_pass(Simplify(), model)
    optimize(model, "simplify")
    (body,) = [graph_ for graph_ in model.graphs() if graph_ is not model.graph]
    assert len({id(value) for value in body.outputs}) == 2


def test_metadata_names_and_ties_are_kept(tmp_path):
    source = proto(
        "m (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w)  i = Identity (a)  y = MatMul (i, w) }", {"w": (4, 4)}
    )
    for node, name in zip(source.graph.node, ("first", "gone", "second"), strict=True):
        node.name = name
        node.metadata_props.add(key="origin", value=f"layer.{name}")
    model = bevel.load(source)
    for text in ("simplify", "simplify{onnxsim=true}"):
        optimize(model, text)
        bevel.save(model, tmp_path / "out.onnx")
        saved = onnx.load(tmp_path / "out.onnx")
        assert [initializer.name for initializer in saved.graph.initializer] == ["w"]
        assert [node.name for node in saved.graph.node] == ["first", "second"]
        assert [node.metadata_props[0].value for node in saved.graph.node] == ["layer.first", "layer.second"]


def test_onnxsim_is_a_guest():
    report = optimize(mlp(), "simplify{onnxsim=true}")
    assert report.steps[0].notes[0].startswith("onnxsim")
    assert report.steps[0].verdict.kept


def test_what_onnxsim_loses_is_noticed():
    source = proto("m (float[2] x) => (float[2] y) { a = Relu (x)  y = Relu (a) }")
    source.graph.node[0].metadata_props.add(key="origin", value="layer")
    (note, *_) = optimize(bevel.load(source), "simplify{onnxsim=true}").steps[0].notes
    assert note == "onnxsim's result dropped: it lost the nodes' metadata"


def test_a_nan_in_an_attribute_does_not_matter():
    model = graph("m (float[2] x) => (float[2] y) { a = Relu (x)  y = Add (a, x) }")
    optimize(model, "simplify", calibration=[{"x": np.array([np.nan, 1], np.float32)}])
