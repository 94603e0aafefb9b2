import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.ir.blocks import find_blocks
from bevel.ir.repetition import chains, layers
from bevel.ir.residual import common_name
from tests import zoo
from tests.graphs import calls, graph, proto

W = {"w": (4, 4), "v": (4, 4)}


def found(body, weights=None, inputs="float[n, 4] x", output="float[n, 4] y"):
    return find_blocks(graph(f"m ({inputs}) => ({output}) {{ {body} }}", W if weights is None else weights))


def ops(block):
    return [node.op_type for node in block.nodes]


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("b = MatMul (x, w)  y = Add (x, b)", ["MatMul", "Add"]),
        ("b = MatMul (x, w)  y = Add (b, x)", ["MatMul", "Add"]),
        ("b = MatMul (x, w)  y = Sum (x, b)", ["MatMul", "Sum"]),
        ("r = Relu (x)  b = MatMul (r, w)  s = Identity (x)  y = Add (s, b)", ["Relu", "MatMul", "Add"]),
        ("b = MatMul (x, w)  k = Mul (b, g)  y = Add (x, k)", ["MatMul", "Mul", "Add"]),
    ],
)
def test_a_sum_with_what_is_computed_from_its_operand_is_a_block(body, operators):
    (block,) = found(body, {**W, "g": (4,)}).blocks
    assert (block.source.name, block.end.name) == ("x", "y")
    assert ops(block) == operators


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = MatMul (x, w)  b = MatMul (x, v)  c = Relu (b)  y = Add (a, c)", "two branches"),
        ("a = Mul (x, x)  b = Mul (a, x)  y = Add (x, b)", "a polynomial"),
        ("a = MatMul (x, w)  y = Add (a, g)", "a bias"),
        ("a = Relu (x)  y = Add (a, a)", "twice itself"),
        ("a = MatMul (z, w)  y = Add (x, a)", "two inputs"),
        ("p = MatMul (x, w)  q = Relu (x)  y = Add (p, q)", "its operand is not what the branch starts from"),
    ],
)
def test_other_sums_are_none(body, why):
    assert found(body, {**W, "g": (4,)}, inputs="float[n, 4] x, float[n, 4] z").blocks == (), why


def test_a_convolution_in_the_skip_is_refused_by_name():
    blocks = found(
        "a = Conv (x, w)  r = Relu (a)  skip = Conv (x, v)  y = Add (r, skip)",
        {"w": (6, 4, 1, 1), "v": (6, 4, 1, 1)},
        "float[n, 4, 5, 5] x",
        "float[n, 6, 5, 5] y",
    )
    assert blocks.blocks == ()
    ((add, why),) = blocks.refused
    assert add.outputs[0].name == "y" and "'skip' (Conv)" in why


def test_a_stream_that_is_broadcast_is_refused():
    blocks = found("e = MatMul (z, w)  b = Mul (e, x)  y = Add (b, z)", inputs="float[n, 4] x, float[1, 4] z")
    assert not blocks.blocks
    assert "shape [1,4]" in blocks.refused[0].why


def test_a_mask_that_all_attentions_add_is_no_stream():
    """The second scores depend on the mask, but only through the side of the first block."""
    body = """
      s1 = MatMul (x, w)  m1 = Add (s1, mask)  b1 = MatMul (m1, v)  x1 = Add (x, b1)
      s2 = MatMul (x1, w)  m2 = Add (s2, mask)  b2 = MatMul (m2, v)  y = Add (x1, b2)
    """
    blocks = found(body, inputs="float[n, 4] x, float[n, 4] mask")
    assert [block.end.name for block in blocks.blocks] == ["x1", "y"]
    assert blocks.refused == ()


def test_parallel_branches_are_two_blocks():
    blocks = found("a = MatMul (x, w)  t = Add (x, a)  b = MatMul (x, v)  y = Add (t, b)").blocks
    assert [(block.start.name, block.branch.name, block.end.name) for block in blocks] == [
        ("x", "a", "t"),
        ("t", "b", "y"),
    ]
    assert [len(layer.blocks) for layer in layers(blocks)] == [1, 1]
    assert len(chains(blocks)) == 1


def test_a_tail_that_repeats_belongs_to_the_block():
    body = """
      a = MatMul (x, w)  s = Add (x, a)  x1 = LayerNormalization (s, g)
      b = MatMul (x1, v)  t = Add (x1, b)  x2 = LayerNormalization (t, h)  y = MatMul (x2, w)
    """
    blocks = found(body, {**W, "g": (4,), "h": (4,)}).blocks
    assert [(block.start.name, block.end.name) for block in blocks] == [("x", "x1"), ("x1", "x2")]


def test_a_sum_that_is_fused_with_its_norm_is_a_block():
    text = """
    m (float[n, t, 4] x) => (float[n, t, 4] y) {
      a = MatMul (x, w)  x1 = com.microsoft.SkipLayerNormalization (a, x, g, h)
      b = MatMul (x1, v)  y = com.microsoft.SkipLayerNormalization (x1, b, g, h)
    }
    """
    source = proto(text, {**W, "g": (4,), "h": (4,)})
    source.opset_import.add(domain="com.microsoft", version=1)
    blocks = find_blocks(bevel.load(source)).blocks
    assert [(block.start.name, block.end.name) for block in blocks] == [("x", "x1"), ("x1", "y")]
    source.graph.node[1].output.extend(["", "", "sum"])
    source.graph.output.add(name="sum")
    assert [block.end.name for block in find_blocks(bevel.load(source)).blocks] == ["y"]


def test_a_norm_after_the_last_sum_of_a_pre_norm_model_stays_outside():
    body = """
      n = LayerNormalization (x, g)  a = MatMul (n, w)  s = Add (x, a)
      m = LayerNormalization (s, g)  b = MatMul (m, v)  t = Add (s, b)  y = LayerNormalization (t, g)
    """
    blocks = found(body, {**W, "g": (4,)}).blocks
    assert [(block.start.name, block.end.name) for block in blocks] == [("x", "s"), ("s", "t")]


def test_an_outer_block_is_not_among_the_innermost():
    body = "a = MatMul (x, w)  s = Add (x, a)  b = MatMul (s, v)  t = Add (s, b)  c = MatMul (t, w)  y = Add (x, c)"
    blocks = found(body)
    assert [block.end.name for block in blocks.blocks] == ["s", "t", "y"]
    assert [block.end.name for block in blocks.innermost] == ["s", "t"]


def test_a_branch_may_hold_inner_graphs():
    body = """
      b = If (c) <then_branch = one () => (float[n, 4] t) { r = Relu (x)  t = MatMul (r, w) },
                  else_branch = two () => (float[n, 4] e) { e = MatMul (x, v) }>
      y = Add (x, b)
    """
    (block,) = found(body, inputs="float[n, 4] x, bool c").blocks
    assert (block.start.name, ops(block)) == ("x", ["If", "Add"])


def test_what_others_read_too_does_not_belong_to_the_block():
    blocks = found(
        "a = MatMul (x, w)  b = Relu (a)  y = Add (x, b)  z = MatMul (a, v)", output="float[n, 4] y, float[n, 4] z"
    )
    (block,) = blocks.blocks
    assert ops(block) == ["Relu", "Add"]


COUNTS = {
    "gpt": (4, 2),
    "gpt-fresh": (4, 2),
    "bert": (4, 2),
    "llama": (4, 2),
    "llama-tied": (4, 2),
    "llama-fused": (4, 2),
    "encoder": (4, 2),
    "mamba": (2, 2),
    "vit": (4, 2),
    "swin": (6, 4),
    "resnet": (2, 2),
    "resnext": (1, 1),
    "mobilenet": (2, 2),
    "convnext": (2, 2),
    "gated": (1, 1),
}
NESTED = {"mamba"}  # beside its scan, D passes the input on


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_blocks_of_the_zoo_are_counted(name, style):
    blocks = find_blocks(bevel.load(zoo.path(name, style)))
    assert (blocks.blocks == blocks.innermost) is (name not in NESTED)
    assert (len(blocks.blocks), len(layers(blocks.blocks))) == COUNTS.get(name, (0, 0))
    names = [block.name for block in blocks.blocks]
    assert len(set(names)) == len(names)


def test_resnet50_has_twelve_blocks_and_four_refused():
    blocks = find_blocks(bevel.load(zoo.light("resnet50")))
    assert [block.end.producer().op_type for block in blocks.blocks] == ["Relu"] * 12
    assert len(blocks.refused) == 4
    assert [len(chain) for chain in chains(blocks.blocks)] == [2, 3, 5, 2]


def test_the_names_of_weights_name_blocks_and_layers():
    blocks = find_blocks(bevel.load(zoo.path("bert", "dynamo"))).blocks
    assert [block.name for block in blocks[:2]] == ["encoder.layer.0.attention", "encoder.layer.0"]
    assert [layer.name for layer in layers(blocks)] == ["encoder.layer.0", "encoder.layer.1"]
    assert common_name(["a.weight", "b.weight"]) == ""


def chain(length):
    """`length` blocks of three nodes."""
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
    stream = start = ir.Value(name="x", shape=shape, type=kind)
    weight = ir.Value(name="w", const_value=ir.tensor(np.eye(4, dtype=np.float32)), shape=ir.Shape([4, 4]), type=kind)
    nodes = []
    for _ in range(length):
        relu = ir.node("Relu", [stream])
        product = ir.node("MatMul", [relu.outputs[0], weight])
        nodes += [relu, product, ir.node("Add", [stream, product.outputs[0]])]
        stream = nodes[-1].outputs[0]
        stream.shape, stream.type = shape, kind
    inner = ir.Graph([start], [stream], nodes=nodes, initializers=[weight], opset_imports={"": 21})
    return ir.Model(inner, ir_version=10)


def test_the_search_is_quick():
    """Near linear: eight times the nodes take at most ten times the calls."""
    short, long = chain(125), chain(1000)
    assert calls(lambda: find_blocks(long)) < 10 * calls(lambda: find_blocks(short))
    assert len(find_blocks(long).blocks) == 1000


def test_a_quadratic_search_would_take_more_calls():
    assert calls(lambda: [abs(j) for _ in range(80) for j in range(80)]) > 10 * calls(
        lambda: [abs(j) for _ in range(10) for j in range(10)]
    )
