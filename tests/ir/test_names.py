"""What Bevel adds to a model has names of its own, whatever the model calls its values and nodes."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.ir.edit import mask, select
from bevel.ir.groups import groups
from bevel.ir.names import Names
from tests.graphs import graph

# Each network holds, before or after it and in an inner graph, values that are called what an edit would call its own.
NETWORKS = {
    "set_operand": """
g (float[n, 6] x, bool c) => (float[n, 3] y) <int64[2] target = {0, 8}> {
  h = MatMul (x, w1)
  [r] u = Reshape (h, target)
  t = Relu (u)
  z = MatMul (t, w2)
  y = If (c) <then_branch = a () => (p) { "r.operand1" = Neg (z) p = Neg ("r.operand1") },
              else_branch = b () => (q) { q = Neg (z) }>
}
""",
    "mask": """
g (float[n, 6] x) => (float[n, 3] y) {
  h = MatMul (x, w1)
  "t.masked.m.1.mask" = Relu (h)
  t = Neg ("t.masked.m.1.mask")
  [m] z = MatMul (t, w2)
  ["t.masked.m.1"] "t.masked.m.1" = Neg (z)
  y = Abs ("t.masked.m.1")
}
""",
}


def declared(model: ir.Model) -> list[str]:
    graphs = list(model.graphs())
    values = [value for found in graphs for node in found for value in node.outputs]
    return [value.name for value in (*values, *(value for found in graphs for value in found.initializers.values()))]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("edit", [select, mask])
def test_an_edit_adds_names_that_nothing_else_has(network, edit):
    text = NETWORKS[network]
    model = graph(text, {"w1": (6, 8), "w2": (8, 3)})
    (group,) = [group for group in groups(model) if group.size == 8]
    edit(model, {group.name: np.arange(4)})
    names = declared(model)
    assert len(set(names)) == len(names)
    bevel.load(ir.to_proto(model))


def test_parts_of_a_sequence_get_names_that_nothing_else_has():
    model = graph("""
g (float[2, 6] x) => (float[2, 3] y, float[2, 6] "s.0") <int64 three = {3}, int64 zero = {0}, int64 one = {1}> {
  s = SplitToSequence <axis = 1> (x, three)
  "s.sizes" = SequenceAt (s, zero)
  b = SequenceAt (s, one)
  y = Add ("s.sizes", b)
  "s.0" = Neg (x)
}
""")
    names = declared(model)
    assert [node.op_type for node in model.graph] == ["Split", "Add", "Neg"]
    assert len(set(names)) == len(names)


def test_thousands_of_names_take_the_time_of_thousands():
    names = Names(graph("g (float[2] x) => (float[2] y) { y = Neg (x) }"))
    found = [names.free("y") for _ in range(20_000)]
    assert len(set(found)) == len(found) and found[:2] == ["y/2", "y/3"]
