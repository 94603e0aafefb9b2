"""The canonical form, step by step, and that it computes what the model computed."""

import io
import logging
import time

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from bevel.backends.files import save
from bevel.backends.onnxruntime import Level, Session
from bevel.frontends.onnx import load
from bevel.ir.canonical import canonicalize, folding
from bevel.ir.canonical.sharing import ORIGIN
from bevel.passes.synthesis import synthesize
from tests.zoo import NAMES, STYLES, model, model_tests, node_tests, trials

RNG = np.random.default_rng(0)


def canonical(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    canonicalize(model)
    return model


def nodes(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def constants(graph: ir.Graph) -> dict[str, list]:
    return {name: value.const_value.numpy().tolist() for name, value in graph.initializers.items()}


def session(proto: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto, options)


def bytes_of(model: ir.Model) -> bytes:
    stream = io.BytesIO()
    save(model, stream)
    return stream.getvalue()


def identical(one, other) -> bool:
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(identical, one, other))
    if one is None or other is None:
        return one is other
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((one == other).all()) if one.dtype == object else one.tobytes() == other.tobytes()


# Constants


def test_constants_of_every_kind_become_initializers():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] a, int64[2] b, float[2] c)
    {
        k = Constant <value = float[2] {1, 2}> ()
        a = Add(x, k)
        i = Constant <value_ints = [3, 4]> ()
        s = Shape(x)
        b = Add(s, i)
        n = Constant <value_float = 5.0> ()
        c = Mul(x, n)
    }""")
    assert nodes(model.graph) == ["Add", "Add", "Mul"]
    assert constants(model.graph) == {"k": [1, 2], "i": [3, 4], "n": 5, "s": [2]}


def test_weights_hidden_in_constant_of_shape_are_lifted_without_taking_memory():
    model = canonical("""
    <ir_version: 3, opset_import: ["" : 9]>
    g (float[1, 100000] x, int64[2] shape) => (float[1, 1000] y)
    <int64[2] shape = {100000, 1000}>
    { w = ConstantOfShape <value = float[1] {0.5}> (shape)  y = MatMul(x, w) }""")
    tensor = model.graph.initializers["w"].const_value
    assert tensor.size == 10**8 and tensor.raw.strides == (0, 0)
    assert nodes(model.graph) == ["MatMul"]


def test_a_constant_that_is_an_output_stays():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] k, float[2] x) { k = Constant <value = float[2] {1, 2}> () }"""
    model = canonical(text)
    assert nodes(model.graph) == ["Constant"] and [value.name for value in model.graph.outputs] == ["k", "x"]


def test_an_initializer_that_is_an_output_stays():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] w, float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) z = Mul(w, w) }""")
    assert "w" in model.graph.initializers and model.graph.outputs[0].name == "w"
    assert session(bytes_of(model)).run(None, {"x": np.ones(2, np.float32)})[0].tolist() == [1, 2]


@pytest.mark.parametrize(("version", "inputs"), [(3, ["x"]), (8, ["x", "scale"])])
def test_initializers_listed_as_inputs_are_no_inputs_in_old_files(version, inputs):
    model = canonical(f"""
    <ir_version: {version}, opset_import: ["" : 9]>
    g (float[2] x, float[2] scale) => (float[2] y) <float[2] scale = {{1, 2}}> {{ y = Mul(x, scale) }}""")
    assert [value.name for value in model.graph.inputs] == inputs
    assert model.ir_version >= 4


def test_constants_of_a_branch_stay_in_the_branch():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] y)
    {
        y = If (c) <
            then_branch = t () => (float[2] p) { k = Constant <value = float[2] {1, 2}> () p = Add(x, k) },
            else_branch = e () => (float[2] q) { q = Neg(x) }
        >
    }""")
    (node,) = model.graph
    assert constants(node.attributes["then_branch"].as_graph()) == {"k": [1, 2]} and not model.graph.initializers


# Shapes and folding


def test_static_parts_of_a_symbolic_shape_are_folded():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, S, 64] q) => (float[N, S, 64] y)
    {
        shape = Shape(q)
        last = Constant <value = int64[1] {-1}> ()
        far = Constant <value = int64[1] {9223372036854775807}> ()
        size = Slice(shape, last, far)
        number = Cast <to = 1> (size)
        root = Sqrt(number)
        one = Constant <value = float[1] {1}> ()
        scale = Div(one, root)
        y = Mul(q, scale)
    }""")
    assert nodes(model.graph) == ["Mul"] and constants(model.graph) == {"scale": [0.125]}


def test_symbolic_parts_stay_and_shapes_are_known():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, S, 768] x) => (float[N, S, 12, 64] y)
    {
        shape = Shape(x)
        zero = Constant <value = int64[1] {0}> ()
        one = Constant <value = int64[1] {1}> ()
        two = Constant <value = int64[1] {2}> ()
        rest = Constant <value = int64[2] {12, 64}> ()
        front = Slice(shape, zero, two)
        target = Concat <axis = 0> (front, rest)
        h = Reshape(x, target)
        y = Relu(h)
    }""")
    assert nodes(model.graph) == ["Shape", "Slice", "Concat", "Reshape", "Relu"]
    assert [str(dim) for dim in model.graph[3].outputs[0].shape] == ["N", "S", "12", "64"]
    assert all(value.const_value is None for node in model.graph for value in node.outputs)
    assert all(not value.metadata_props for node in model.graph for value in node.outputs)


def test_weights_are_not_folded_whatever_their_size():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] y)
    <float[2, 1] w = {1, 2}, float[2] b = {3, 4}, float[2] d = {5, 6}>
    { t = Transpose(w) v = Add(b, d) h = MatMul(x, w) u = Mul(v, x) y = Add(h, u) }""")
    assert {"w", "b", "d"} <= set(model.graph.initializers)


def test_a_stale_declared_shape_is_not_believed():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (int64[2] s) <float[3, 4] h> { h = Relu(x) t = Shape(h) s = Identity(t) }"""
    assert nodes(canonical(text).graph) == ["Relu", "Shape", "Identity"]


def test_a_declared_shape_is_kept_where_inference_knows_nothing():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17, "other" : 1]>
    g (float[N, 4] x) => (float[3, 4] y) <float[3, 4] h> { h = other.Custom(x) y = Relu(h) }""")
    assert [value.shape.numpy() for value in (model.graph[0].outputs[0], model.graph[1].outputs[0])] == [(3, 4), (3, 4)]


def strange(*dims):
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), ir_version=8)


@pytest.mark.parametrize("dims", [("?", 3, "?", "?"), ("batch size", 3, "2x", "x:0"), ("-1", 3, "n", "None")])
def test_names_of_sizes_that_cannot_be_read_hide_no_shape(dims):
    loaded = load(strange(*dims))
    (conv, _) = loaded.graph
    assert conv.outputs[0].shape[1] == 4
    batch, rows, columns = (str(conv.outputs[0].shape[place]) for place in (0, 2, 3))
    assert len({batch, rows, columns}) == 3  # two of no name are not one size
    stream = io.BytesIO()
    save(loaded, stream, external_data=False)
    (x,) = onnx.load_from_string(stream.getvalue()).graph.input
    assert [dim.dim_param or dim.dim_value for dim in x.type.tensor_type.shape.dim] == list(dims)


def test_sizes_without_a_name_are_made_up_apart():
    (feed,) = synthesize(load(strange("?", 3, "?", "?")), 0, 1, lambda feed: None)
    assert len(set(feed["x"].shape)) == 4


def test_branches_of_different_shapes_are_not_believed():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2, 3] x) => (int64[k] s)
    {
        h = If (c) <
            then_branch = t () => (float[2, 3] p) { p = Neg(x) },
            else_branch = e () => (float[6] q) { one = Constant <value = int64[1] {-1}> () q = Reshape(x, one) }
        >
        r = Shape(h)
        s = Identity(r)
    }""")
    assert nodes(model.graph) == ["If", "Shape", "Identity"] and model.graph[0].outputs[0].shape is None


GROWING_LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64 n, float[1] x) => (float[k] y, int64[1] last)
<bool yes = {1}, int64[1] start = {0}>
{
    y, last = Loop (n, yes, x, start) <body = b (int64 i, bool go, float[1] v, int64[1] size) =>
        (bool again, float[m] w, int64[1] seen)
        { again = Identity(go) w = Concat <axis = 0> (v, v) seen = Shape(v) }>
}"""


def test_a_loop_that_grows_its_state_still_computes_it():
    proto = onnx.parser.parse_model(GROWING_LOOP)
    feed = {"n": np.array(3), "x": np.ones(1, np.float32)}
    before = session(proto.SerializeToString()).run(None, feed)
    after = session(bytes_of(load(proto))).run(None, feed)
    assert identical(before, after) and after[1].tolist() == [4]


COLLECTS = """
<ir_version: 8, opset_import: ["" : 17]> m (float[2] x, int64 k, bool on) => (float[n] y) {
  none = SequenceEmpty ()
  all = Loop <body = round (int64 i, bool c, seq(float) s) => (bool d, seq(float) t) {
    d = Identity (c)  t = SequenceInsert (s, x)
  }> (k, on, none)
  y = ConcatFromSequence <axis = 0> (all)
}
"""


@pytest.mark.parametrize("declared", [True, False])
def test_the_state_of_a_loop_whose_type_is_left_out_may_be_a_sequence(declared):
    proto = onnx.parser.parse_model(COLLECTS)
    body = proto.graph.node[1].attribute[0].g
    for value in (body.input[2], *body.output):
        value.ClearField("type")
    if declared:
        sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
        proto.graph.value_info.append(helper.make_value_info("none", sequence))
        proto.graph.node[0].attribute.append(helper.make_attribute("dtype", onnx.TensorProto.FLOAT))
    x = np.array([1, 2], np.float32)
    with Session(load(proto)) as session:
        found = session.run({"x": x, "k": np.array(3), "on": np.array(True)})["y"]
    assert np.array_equal(found, np.tile(x, 3))


def test_half_precision_is_not_folded():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float16[2] x) => (float16[2] y) <float16 k = {2}> { r = Sqrt(k) y = Mul(x, r) }""")
    assert nodes(model.graph) == ["Sqrt", "Mul"]


def test_random_numbers_and_foreign_operators_are_not_folded():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17, "other" : 1]>
    g (float[2] x) => (float[2] y)
    <int64[1] two = {2}>
    { r = RandomNormal <shape = [2]> () c = other.Shape(two) s = Add(x, r) y = Expand(s, c) }""")
    assert nodes(model.graph) == ["RandomNormal", "Shape", "Add", "Expand"]


def test_what_could_be_large_is_not_computed():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1] x) => (float[k] y)
    <int64 zero = {0}, int64 many = {1000000000000}, int64 one = {1}>
    { r = Range(zero, many, one) f = Cast <to = 1> (r) y = Add(x, f) }""")
    assert nodes(model.graph) == ["Range", "Cast", "Add"]


def test_a_list_that_a_range_takes_for_a_scalar_becomes_one():
    proto = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 18]>
    g (int64[2] x) => (int64[k] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] three = {3}>
    {
        n = Size(x)
        c = Cast <to = 9> (n)
        i = If (c) <then_branch = a () => (p) { p = Identity(three) }, else_branch = b () => (q) { q = Abs(x) }>
        y = Range(zero, i, one)
    }""")
    feed = {"x": np.array([3, 4])}
    before = session(proto.SerializeToString()).run(None, feed)
    with Session(load(proto), level=Level.AS_DEPLOYED) as after:
        assert after.run(feed)["y"].tolist() == before[0].tolist() == [0, 1, 2]


def test_a_scalar_that_a_range_takes_stays_as_it_is():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 18]>
    g (int64 n) => (int64[k] y) <int64 zero = {0}, int64 one = {1}> { y = Range(zero, n, one) }""")
    assert nodes(model.graph) == ["Range"]


BINARY = ([7, -8], [2, 3])
FOLDED = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"), BINARY),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), BINARY),
    **dict.fromkeys(("And", "Or", "Xor"), ([True, False], [True, True])),
    **dict.fromkeys(("Neg", "Abs", "Identity", "Shape", "Size", "Flatten", "Transpose"), ([7, -8],)),
    **dict.fromkeys(("Floor", "Ceil", "Sqrt", "Reciprocal"), (np.array([2.5], np.float32),)),
    **dict.fromkeys(("Reshape", "Expand", "Tile"), ([[7, -8]], [1, 2])),
    **dict.fromkeys(("ReduceProd", "ReduceMax", "ReduceMin"), ([7, -8], [0])),
    "Not": ([True],),
    "Where": ([True, False], [1, 2], [3, 4]),
    "Cast": ([7, -8],),
    "CastLike": ([7, -8], np.float32(1)),
    "Range": (1, 9, 3),
    "Concat": BINARY,
    "Split": ([7, -8], [1, 1]),
    "Slice": ([7, -8], [0], [1]),
    "Gather": ([7, -8], [-1, 0]),
    "Squeeze": ([[7]], [0]),
    "Unsqueeze": ([7, -8], [0]),
}


@pytest.mark.parametrize("op_type", sorted(folding.FOLDABLE))
def test_every_foldable_operator_is_computed(op_type):
    arrays = [np.asarray(array) for array in FOLDED[op_type]]
    inputs = [ir.Value(name=f"i{index}", const_value=ir.tensor(array)) for index, array in enumerate(arrays)]
    attributes = {"Cast": {"to": 1}, "Concat": {"axis": 0}, "Flatten": {"axis": 0}}.get(op_type, {})
    node = ir.node(op_type, inputs, attributes, num_outputs=2 if op_type == "Split" else 1)
    graph = ir.Graph([], [], nodes=[node], initializers=inputs, opset_imports={"": 18})
    for index, value in enumerate(node.outputs):
        value.name, value.shape = f"o{index}", ir.Shape([3])
    assert graph.initializers and folding.computed(node, 18, set(inputs)) is not None


def test_a_mistake_of_ours_is_not_taken_for_an_input_that_an_operator_does_not_accept(monkeypatch):
    def mistaken(node):
        raise TypeError("no such argument")

    monkeypatch.setattr(folding.ir, "to_proto", mistaken)
    with pytest.raises(TypeError, match="no such argument"):
        canonical("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[1] x) => (int64[1] y) <int64[1] a = {7}, int64[1] b = {2}> { c = Mod(a, b) y = Add(x, c) }""")


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
@pytest.mark.parametrize(
    ("op_type", "arrays"),
    [
        ("Div", [np.array([-7, 7, -8]), np.array([2, -2, 3])]),
        ("Mod", [np.array([-7, 7]), np.array([3, -3])]),
        ("Sqrt", [np.array([2.0], np.float32)]),
        ("Gather", [np.array([5, 6, 7]), np.array([-1, 0])]),
        ("Cast", [np.array([2.9], np.float32)]),
        ("Range", [np.array(1), np.array(9), np.array(3)]),
        ("Where", [np.array([True, False]), np.array([1, 2]), np.array([3, 4])]),
    ],
)
def test_evaluation_agrees_with_onnx_runtime(op_type, arrays, opset):
    if not onnx.defs.has(op_type, opset, ""):
        pytest.skip("newer operator")
    names = [f"i{index}" for index in range(len(arrays))]
    attributes = {"to": onnx.TensorProto.INT64} if op_type == "Cast" else {}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["o"], **attributes)],
        "g",
        [],
        [helper.make_value_info("o", onnx.TypeProto())],
        [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    dtype = onnx.TensorProto.FLOAT if op_type == "Sqrt" else onnx.TensorProto.INT64
    proto.graph.output[0].type.tensor_type.elem_type = dtype
    (expected,) = session(proto.SerializeToString()).run(None, {})
    (node,) = ir.from_proto(proto).graph
    assert identical(folding.evaluate(node, opset, arrays)[0], expected)


# Functions


def test_functions_are_inlined_with_unique_names():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (bool c, float[4] x) => (float[4] y)
    {
        t = local.twice(x)
        y = If (c) <then_branch = a () => (float[4] p) { u = Neg(t) p = local.twice(u) },
                    else_branch = b () => (float[4] q) { q = local.twice(t) }>
    }
    <domain: "local", opset_import: ["" : 17]>
    twice (v) => (w) { u = Add(v, v) w = Neg(u) }""")
    names = [value.name for graph in model.graphs() for node in graph for value in node.outputs]
    assert len(set(names)) == len(names) and not model.functions
    onnx.checker.check_model(onnx.load_from_string(bytes_of(model)))


def test_a_function_of_another_opset_is_kept():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[4] x) => (float[4] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["" : 13]>
    twice (v) => (w) { w = Add(v, v) }""")
    assert nodes(model.graph) == ["twice"] and len(model.functions) == 1


# Sharing


SHARED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}>
{ h = MatMul(x, w) i = Add(h, b) j = MatMul(i, w) k = Add(j, b) y = Mul(k, b) }"""


def test_vectors_are_given_to_each_use_and_matrices_stay_tied():
    model = canonical(SHARED)
    assert list(model.graph.initializers) == ["w", "b", "b/2", "b/3"]
    assert model.graph.initializers["b/3"].meta[ORIGIN] == "b"
    assert len(model.graph.initializers["w"].uses()) == 2


def test_equal_copies_are_one_again_in_the_file():
    saved = onnx.load_from_string(bytes_of(canonical(SHARED)))
    assert [tensor.name for tensor in saved.graph.initializer] == ["w", "b"]


def test_copies_that_were_changed_stay_apart():
    model = canonical(SHARED)
    model.graph.initializers["b/2"].const_value = ir.tensor(np.zeros(2, np.float32), name="b/2")
    saved = onnx.load_from_string(bytes_of(model))
    assert [tensor.name for tensor in saved.graph.initializer] == ["w", "b", "b/2"]
    assert list(saved.graph.node[3].input) == ["j", "b/2"] and list(saved.graph.node[4].input) == ["k", "b"]


def test_copies_that_changed_alike_are_one_under_the_original_name():
    model = canonical(SHARED)
    for name in ("b", "b/2", "b/3"):
        model.graph.initializers[name].const_value = ir.tensor(np.zeros(2, np.float32), name=name)
    saved = onnx.load_from_string(bytes_of(model))
    assert [tensor.name for tensor in saved.graph.initializer] == ["w", "b"]


def test_vectors_that_an_identity_ties_are_apart_and_matrices_stay_tied():
    model = canonical("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 2] x) => (float[N, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}>
    { v = Identity(w) c = Identity(b) h = MatMul(x, w) i = Add(h, b) j = MatMul(i, v) y = Add(j, c) }""")
    assert nodes(model.graph) == ["MatMul", "Add", "MatMul", "Add"] and list(model.graph.initializers) == [
        "w",
        "b",
        "c",
    ]
    saved = onnx.load_from_string(bytes_of(model))
    assert [tensor.name for tensor in saved.graph.initializer] == ["w", "b"]


RESHAPES = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 8] x) => (float[N, 2, 4] y, float[N, 2, 4] z)
<int64[1] zero = {0}, int64[1] one = {1}, int64[2] rest = {2, 4}>
{
    shape = Shape(x)
    batch = Slice(shape, zero, one)
    target = Concat <axis = 0> (batch, rest)
    y = Reshape(x, target)
    r = Relu(x)
    z = Reshape(r, target)
}"""


def test_shape_arithmetic_with_sizes_is_given_to_each_use():
    model = canonical(RESHAPES)
    assert nodes(model.graph) == ["Shape", "Slice", "Concat", "Concat", "Reshape", "Relu", "Reshape"]
    assert set(model.graph.initializers) == {"zero", "one", "rest", "rest/2"}
    saved = onnx.load_from_string(bytes_of(model))
    assert [node.op_type for node in saved.graph.node] == ["Shape", "Slice", "Concat", "Reshape", "Relu", "Reshape"]
    assert list(saved.graph.node[5].input) == ["r", "target"]


def test_shape_arithmetic_that_was_changed_stays_apart():
    model = canonical(RESHAPES)
    changed = model.graph.initializers["rest/2"]
    changed.const_value = ir.tensor(np.array([4, 2]), name="rest/2")
    saved = onnx.load_from_string(bytes_of(model))
    assert [node.op_type for node in saved.graph.node].count("Concat") == 2


def test_copies_of_shape_arithmetic_cannot_explode():
    """Each sum uses the one before twice: paths double, nodes must not."""
    links = "".join(f"s{link + 1} = Add(s{link}, s{link}) " for link in range(40))
    model = canonical(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[1] n, float[N] x) => (float[k] y)
    <int64[1] one = {{1}}> {{ s0 = Add(n, one) {links} y = Expand(x, s40) }}""")
    assert len(model.graph) <= 84


def test_names_metadata_and_docs_survive():
    proto = onnx.parser.parse_model(SHARED)
    proto.doc_string, proto.graph.doc_string, proto.producer_name = "model", "graph", "maker"
    proto.metadata_props.add(key="author", value="somebody")
    for index, node in enumerate(proto.graph.node):
        node.name, node.doc_string = f"node{index}", f"doc{index}"
        node.metadata_props.add(key="layer", value=str(index))
    proto.opset_import.add(domain="other", version=3)
    saved = onnx.load_from_string(bytes_of(load(proto)))
    for field in ("doc_string", "producer_name", "metadata_props", "opset_import", "ir_version"):
        assert getattr(saved, field) == getattr(proto, field)
    for node in proto.graph.node:
        node.ClearField("domain")  # the parser states the default
    assert saved.graph.doc_string == "graph" and list(saved.graph.node) == list(proto.graph.node)
    assert list(saved.graph.input) == list(proto.graph.input) and list(saved.graph.output) == list(proto.graph.output)


# Scale and truth


def chain(count: int) -> onnx.ModelProto:
    """A chain of matrix products, each reshaped to a shape computed from itself: 10 nodes a link."""
    made, last = [], "x"
    for link in range(count // 10):
        made += [
            helper.make_node("MatMul", [last, "w"], [f"a{link}"]),
            helper.make_node("Add", [f"a{link}", "b"], [f"b{link}"]),
            helper.make_node("Relu", [f"b{link}"], [f"c{link}"]),
            helper.make_node("Shape", [f"c{link}"], [f"d{link}"]),
            helper.make_node("Constant", [], [f"e{link}"], value_int=0),
            helper.make_node("Gather", [f"d{link}", f"e{link}"], [f"f{link}"]),
            helper.make_node("Constant", [], [f"g{link}"], value_ints=[0]),
            helper.make_node("Unsqueeze", [f"f{link}", f"g{link}"], [f"h{link}"]),
            helper.make_node("Concat", [f"h{link}", "eight"], [f"i{link}"], axis=0),
            helper.make_node("Reshape", [f"c{link}", f"i{link}"], [f"j{link}"]),
        ]
        last = f"j{link}"
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, ["N", 8])],
        [
            numpy_helper.from_array(RNG.standard_normal((8, 8)).astype(np.float32), "w"),
            numpy_helper.from_array(np.ones(8, np.float32), "b"),
            numpy_helper.from_array(np.array([8]), "eight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Eight times the nodes take at most sixteen times as long: linear, with room for a busy machine; squared would be 64.
LINEAR = 16


def test_time_grows_with_the_number_of_nodes():
    small, large = (min(seconds(chain(count)) for _ in range(3)) for count in (500, 4000))
    assert large < LINEAR * small


def seconds(proto):
    """Processor time: what waits for other processes does not count."""
    model = ir.from_proto(proto)
    start = time.process_time()
    canonicalize(model)
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_exported_networks_compute_the_same(name, style):
    original = model(name, style)
    before, after = session(original.SerializeToString()), session(bytes_of(load(original)))
    for feed, _ in trials(name):
        feed = dict(zip([value.name for value in before.get_inputs()], feed.values(), strict=False))
        assert identical(before.run(None, feed), after.run(None, feed))


# Outputs that differ from one run to the next without any change to the model.
RANDOM_OPERATORS = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
RANDOM_OPERATORS |= {"RandomUniformLike"}


@pytest.mark.slow
@pytest.mark.parametrize("cases", [node_tests, model_tests], ids=["node", "model"])
def test_conformance_models_compute_the_same(cases):
    logging.disable(logging.WARNING)
    wrong, count = [], 0
    for case in cases():
        before = session(case.model.SerializeToString()).run(None, case.feed)
        after = session(bytes_of(load(case.model))).run(None, case.feed)
        count += 1
        is_random = any(node.op_type in RANDOM_OPERATORS for node in case.model.graph.node)
        if not identical(before, after) and not (is_random and case.agrees(after)):
            wrong.append(case.name)
    assert not wrong and count >= 100


def test_what_a_dead_condition_read_is_dead_as_well():
    model = canonical(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[3] x, bool c) => (float[3] y) {
          h = Exp (x)
          z = If (c) <
            then_branch = yes () => (float[3] a) { a = Neg (h) },
            else_branch = no () => (float[3] b) { d = Identity (h) b = Neg (d) }
          >
          y = Abs (x)
        }"""
    )
    assert nodes(model.graph) == ["Abs"]
