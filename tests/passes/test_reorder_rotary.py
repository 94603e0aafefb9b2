"""Rotary pairs move with their frequencies: by halves and interleaved, decomposed and fused, a table shared or not."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import EditRefused, PromiseBroken
from bevel.ir.groups import analyse
from bevel.ir.provenance import Provenance, set_provenance
from bevel.passes.base import Context, Outcome, Preserving
from bevel.passes.reorder_channels import ReorderChannels
from bevel.passes.reordering.tables import separate_tables
from tests import zoo
from tests.ir.contrib_cases import Case, floats, whole

# One layer each: heads of 8 whose partners stand side by side, angles computed from positions; x is [2, 3, 8].
TURN = (
    "{0}0 = MatMul({x}, {w}) {0}1 = Reshape({0}0, split) {0}2 = Transpose <perm = [0, 2, 1, 3, 4]> ({0}1) "
    "{0}e, {0}o = Split <axis = 4, num_outputs = 2> ({0}2) "
    "{0}ec = Mul({0}e, cos) {0}os = Mul({0}o, sin) {0}es = Mul({0}e, sin) {0}oc = Mul({0}o, cos) "
    "{0}a = Sub({0}ec, {0}os) {0}b = Add({0}es, {0}oc) {0}p = Concat <axis = 4> ({0}a, {0}b) "
    "{0}f = Reshape({0}p, flat) "
)
INTERLEAVED_LAYER = (
    TURN.replace("{0}", "q{1}").replace("{w}", "wq{1}")
    + TURN.replace("{0}", "k{1}").replace("{w}", "wk{1}")
    + "kt{1} = Transpose <perm = [0, 1, 3, 2]> (k{1}f) z{1} = MatMul(q{1}f, kt{1}) m{1} = Softmax(z{1}) "
    "v{1} = MatMul(x, wv{1}) u{1} = Unsqueeze(v{1}, one) h{1} = MatMul(m{1}, u{1}) "
    "n{1} = ReduceSum <keepdims = 0> (h{1}, one) "
)
ANGLES = (
    "size = Shape <start = 1, end = 2> (x) count = Squeeze(size) steps = Range(zero, count, step) "
    "times = Cast <to = 1> (steps) column = Reshape(times, upright) angle = Mul(column, frequencies) "
    "c2 = Cos(angle) s2 = Sin(angle) cos = Unsqueeze(c2, last) sin = Unsqueeze(s2, last) "
)
X = {"x": floats(2, 3, 8)}
INTERLEAVED = Case(
    "interleaved",
    ANGLES + "".join(INTERLEAVED_LAYER.replace("{1}", n).replace("{x}", "x") for n in "12") + "y = Add(n1, n2)",
    X,
    {
        **{f"w{kind}{n}": floats(8, 16 if kind != "v" else 5, seed=ord(kind) + int(n)) for kind in "qkv" for n in "12"},
        "frequencies": np.array([1.0, 0.3, 0.1, 0.03], np.float32),
        **{"zero": whole(0)[0], "step": whole(1)[0], "one": whole(1), "last": whole(2), "upright": whole(-1, 1)},
        **{"split": whole(0, 0, 2, 4, 2), "flat": whole(0, 0, 0, 8)},
    },
    0,
    0,
)
FUSED = Case(
    "fused",
    "".join(
        f"q{n} = MatMul(x, wq{n}) k{n} = MatMul(x, wk{n}) v{n} = MatMul(x, wv{n}) "
        f"a{n} = ms.RotaryEmbedding(q{n}, i, c, s) b{n} = ms.RotaryEmbedding(k{n}, i, c, s) "
        f"o{n} = ms.MultiHeadAttention <num_heads = 2> (a{n}, b{n}, v{n}) y{n} = MatMul(o{n}, wo{n}) "
        for n in "12"
    )
    + "y = Add(y1, y2)",
    {**X, "i": whole([0, 1, 2], [3, 4, 5])},
    {
        **{f"w{kind}{n}": floats(8, 16, seed=ord(kind) + int(n)) for kind in "qkv" for n in "12"},
        **{f"wo{n}": floats(16, 5, seed=int(n)) for n in "12"},
        **{"c": floats(10, 4), "s": floats(10, 4, seed=1)},
    },
    0,
    0,
)
GROUPED = Case(
    "grouped",
    "".join(
        f"q{n} = MatMul(x, wq{n}) k{n} = MatMul(x, wk{n}) v{n} = MatMul(x, wv{n}) o{n}, p{n}, r{n} = "
        f"ms.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1> (q{n}, k{n}, v{n}, , , l, t, c, s) "
        f"y{n} = MatMul(o{n}, wo{n}) "
        for n in "12"
    )
    + "y = Add(y1, y2)",
    {**X, "l": whole(2, 2, dtype=np.int32)},
    {
        **{
            f"w{kind}{n}": floats(8, 64 if kind == "q" else 32, seed=ord(kind) + int(n)) for kind in "qkv" for n in "12"
        },
        **{f"wo{n}": floats(64, 5, seed=int(n)) for n in "12"},
        **{"c": floats(10, 8), "s": floats(10, 8, seed=1), "t": whole(3, dtype=np.int32)},
    },
    0,
    0,
)
CASES = {case.name: (case, pairs) for case, pairs in ((INTERLEAVED, 4), (FUSED, 4), (GROUPED, 8))}


def loaded(name):
    """A model, its feeds, and what holds its frequencies."""
    if name == "halves":
        return bevel.load(zoo.model("llama", "dynamo")), [feed for feed, _ in zoo.trials("llama")], "frequencies"
    case, _ = CASES[name]
    table = "frequencies" if name == "interleaved" else "c"
    return bevel.load(ir.to_proto(case.model)), [case.feed], table


def pairs(model, table):
    """The groups of the frequencies."""
    return [
        group
        for group in analyse(model).groups
        if any((member.value.name or "").split("/")[0] == table for member in group.members)
        and group.size == model.graph.initializers[table].shape[-1]
    ]


NAMES = ["halves", *CASES]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by", ["key-norm", "rms"])
def test_pairs_move_with_their_frequencies(name, by):
    model, feeds, table = loaded(name)
    (group,) = pairs(model, table)
    nodes, before = len(model.graph), model.graph.initializers[table].const_value.numpy().copy()
    report = bevel.optimize(model, f"reorder-channels{{by={by} only={group.name}}}", calibration=feeds)
    after = model.graph.initializers[table].const_value.numpy()
    assert report.steps[0].notes[0].startswith("1 of")
    assert not np.array_equal(before, after) and np.array_equal(np.sort(before), np.sort(after))
    assert len(model.graph) == nodes


class Forgotten(ReorderChannels):
    """Permute pairs, and leave the tables as they were: the planted error."""

    promise = Preserving()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        tables = {name: value.const_value for name, value in model.graph.initializers.items() if name in TABLES}
        outcome = super().run(model, context)
        for name, tensor in tables.items():
            model.graph.initializers[name].const_value = tensor
        return outcome


TABLES = ("frequencies", "c", "s")


@pytest.mark.parametrize("name", NAMES)
def test_pairs_without_their_frequencies_are_caught(name):
    model, feeds, table = loaded(name)
    (group,) = pairs(model, table)
    with pytest.raises(PromiseBroken):
        bevel.optimize(model, [Forgotten(by="key-norm", only=(group.name,))], calibration=feeds)


@pytest.mark.parametrize(
    ("name", "copies", "nodes"), [("halves", 1, 4), ("interleaved", 1, 5), ("fused", 2, 0), ("grouped", 2, 0)]
)
def test_layers_with_tables_of_their_own_have_orders_of_their_own(name, copies, nodes):
    model, feeds, table = loaded(name)
    before = len(model.graph)
    report = bevel.optimize(model, "reorder-channels{by=key-norm tables=apart}", calibration=feeds)
    assert any(note.startswith(f"{copies} tables copied") for note in report.steps[0].notes)
    assert len(model.graph) == before + nodes
    found = pairs(model, table)
    assert len(found) == 2
    first, second = (
        next(member.value for member in group.members if member.value.name.split("/")[0] == table) for group in found
    )
    assert not np.array_equal(first.const_value.numpy(), second.const_value.numpy())


BIASED = Case(
    "biased",
    "picked = Gather(table, distances) biases = Transpose <perm = [2, 0, 1]> (picked) "
    + "".join(
        f"q{n} = MatMul(x, wq{n}) a{n} = Reshape(q{n}, split) b{n} = Transpose <perm = [0, 2, 1, 3]> (a{n}) "
        f"k{n} = MatMul(x, wk{n}) c{n} = Reshape(k{n}, split) d{n} = Transpose <perm = [0, 2, 3, 1]> (c{n}) "
        f"v{n} = MatMul(x, wv{n}) e{n} = Reshape(v{n}, split) f{n} = Transpose <perm = [0, 2, 1, 3]> (e{n}) "
        f"z{n} = MatMul(b{n}, d{n}) t{n} = Add(z{n}, biases) m{n} = Softmax(t{n}) h{n} = MatMul(m{n}, f{n}) "
        f"i{n} = Transpose <perm = [0, 2, 1, 3]> (h{n}) o{n} = Reshape(i{n}, flat) y{n} = MatMul(o{n}, wo{n}) "
        for n in "12"
    )
    + "y = Add(y1, y2)",
    X,
    {
        **{f"w{kind}{n}": floats(8, 8, seed=ord(kind) + int(n)) for kind in "qkvo" for n in "12"},
        **{"table": floats(5, 4), "distances": whole([2, 1, 0], [3, 2, 1], [4, 3, 2])},
        **{"split": whole(0, 0, 4, 2), "flat": whole(0, 0, 8)},
    },
    0,
    0,
)


def test_biases_by_distance_are_a_table_of_heads():
    model = bevel.load(ir.to_proto(BIASED.model))
    bevel.optimize(model, "reorder-channels{importance=random tables=apart}", calibration=[BIASED.feed])
    tables = {name: value for name, value in model.graph.initializers.items() if name.startswith("table")}
    heads = [group for group in analyse(model).groups if any(m.value.name in tables for m in group.members)]
    assert len(tables) == 2 and [group.size for group in heads if group.allows("permute")] == [4, 4]


def test_copies_that_nothing_tells_apart_are_one_again_in_the_file(tmp_path):
    model, _, _ = loaded("halves")
    before = len(model.graph)
    bevel.save(model, tmp_path / "before.onnx")
    assert separate_tables(model) == 1
    assert len(model.graph) == before + 4
    bevel.save(model, tmp_path / "after.onnx")
    sizes = [len(ir.load(tmp_path / name).graph) for name in ("before.onnx", "after.onnx")]
    assert sizes[0] == sizes[1]


def test_heads_with_angles_of_their_own_have_orders_of_their_own():
    frequencies = np.array([[[1.0, 0.3, 0.1, 0.03]], [[0.9, 0.2, 0.05, 0.01]]], np.float32)
    weights = INTERLEAVED.weights | {"frequencies": frequencies, "last": whole(3)}
    model = bevel.load(ir.to_proto(replace(INTERLEAVED, weights=weights).model))
    bevel.optimize(model, "reorder-channels{by=key-norm}", calibration=[INTERLEAVED.feed])
    after = model.graph.initializers["frequencies"].const_value.numpy()
    orders = [[list(head[0]).index(each) for each in row[0]] for head, row in zip(frequencies, after, strict=True)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == [0, 1, 2, 3]


def test_one_buffer_of_a_module_cannot_have_two_orders():
    model, feeds, _ = loaded("halves")
    set_provenance(model.graph.initializers["frequencies"], Provenance(("frequencies",), trainable=False))
    shared = model.clone()
    bevel.optimize(shared, "reorder-channels{by=key-norm}", calibration=feeds)
    assert "frequencies" in {name for tensor in bevel.plan(shared).changed for name in tensor.names}
    bevel.optimize(model, "reorder-channels{by=key-norm tables=apart}", calibration=feeds)
    with pytest.raises(EditRefused, match="holds it more than once"):
        bevel.plan(model)


@pytest.mark.parametrize(("name", "style"), [("gpt", "torchscript"), ("bert", "dynamo"), ("swin", "dynamo-optimized")])
def test_embeddings_are_no_tables(name, style):
    assert separate_tables(bevel.load(zoo.model(name, style))) == 0


def test_the_key_decides_and_of_a_pair_the_larger_half():
    model, feeds, _ = loaded("halves")
    (group,) = pairs(model, "frequencies")
    sizes = {"0": [9, 1, 1, 1, 1, 1, 1, 1], "1": [1, 1, 1, 1, 1, 1, 5, 1]}  # queries and keys: rows of a head
    for kind, rows in sizes.items():
        for layer in "01":
            value = model.graph.initializers[f"blocks.{layer}.qkv.weights.{kind}.weight"]
            weight = value.const_value.numpy().reshape(-1, 8, 64)
            weight = weight / np.linalg.norm(weight, axis=2, keepdims=True) * np.array(rows)[:, None]
            value.const_value = ir.tensor(weight.reshape(value.shape).astype(np.float32), name=value.name)
    frequencies = model.graph.initializers["frequencies"].const_value.numpy().copy()
    bevel.optimize(model, f"reorder-channels{{by=key-norm only={group.name}}}", calibration=feeds)
    assert model.graph.initializers["frequencies"].const_value.numpy()[0] == frequencies[2]
