"""Channels in the order of a block format: sizes, arrangements, chosen entries, and a search that is never worse."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import CalibrationError, UsageError
from bevel.ir.groups import analyse
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.formats import block_format
from bevel.passes.reordering.errors import output_errors, vector_error
from bevel.passes.reordering.search import Search
from bevel.passes.reordering.targets import innermost, targets
from bevel.passes.reordering.vectors import watch
from tests.graphs import graph
from tests.passes.nets import Net

RNG = np.random.default_rng(0)
WIDTH, HEADS, HEAD = 16, 2, 32
ATTENTION = f"""
attention (float[n, s, {WIDTH}] x) => (float[n, s, {WIDTH}] y)
<int64[4] split = {{0, 0, {HEADS}, {HEAD}}}, int64[3] flat = {{0, 0, {HEADS * HEAD}}}> {{
  q0 = MatMul (x, wq)
  q1 = Reshape (q0, split)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k0 = MatMul (x, wk)
  k1 = Reshape (k0, split)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v0 = MatMul (x, wv)
  v1 = Reshape (v0, split)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  z = MatMul (q, k)
  p = Softmax (z)
  o0 = MatMul (p, v)
  o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
  o = Reshape (o1, flat)
  y = MatMul (o, wo)
}}
"""
WEIGHTS = {"wq": (WIDTH, 64), "wk": (WIDTH, 64), "wv": (WIDTH, 64), "wo": (64, WIDTH)}
FEEDS = [{"x": RNG.standard_normal((2, 16, WIDTH)).astype(np.float32)} for _ in range(2)]
# Large channels of keys and of values, others in each head, spread over all blocks of 8.
LARGE = np.zeros((HEADS, HEAD), bool)
LARGE[0, ::8], LARGE[1, 3::8] = True, True


def planted():
    model = graph(ATTENTION, WEIGHTS)
    for name in ("wk", "wv"):
        value = model.graph.initializers[name]
        scaled = value.const_value.numpy() * np.where(LARGE.ravel(), 13, 1) * 0.1
        value.const_value = ir.tensor(scaled.astype(np.float32), name=name)
    return model


def context(feeds=FEEDS):
    return Context(0, Calibration(lambda: feeds, "a test"), Execution())


def norms(model, name):
    """The sizes of a projection's rows, head by head."""
    rows = np.linalg.norm(model.graph.initializers[name].const_value.numpy(), axis=0)
    return rows.reshape(HEADS, HEAD)


@pytest.mark.parametrize("by", ["key-norm", "absmax", "absmean", "rms"])
def test_each_head_is_sorted_by_its_keys(by):
    model = planted()
    bevel.optimize(model, f"reorder-channels{{by={by} only=wk}}", calibration=FEEDS)
    large = norms(model, "wk") > 1
    assert (large[:, :4]).all() and not large[:, 4:].any()


def test_heads_that_share_an_order_are_not_sorted_each():
    model = planted()
    bevel.optimize(model, "reorder-channels{by=key-norm only=wk per-head=false}", calibration=FEEDS)
    large = norms(model, "wk") > 1
    assert large.any(0)[:8].all() and not large[0, :8].all() and not large[:, 8:].any()


def test_large_ones_are_dealt_to_all_blocks():
    model = planted()
    bevel.optimize(model, "reorder-channels{by=key-norm order=dealt block=16 only=wk}", calibration=FEEDS)
    assert (norms(model, "wk") > 1).reshape(HEADS, 2, 16).sum(2).tolist() == [[2, 2], [2, 2]]


def test_blocks_of_one_size_move_no_more_than_that():
    model = planted()
    before = norms(model, "wq")
    bevel.optimize(model, "reorder-channels{by=key-norm order=grouped block=4 only=wk}", calibration=FEEDS)
    assert np.allclose(norms(model, "wq")[0, :4], before[0, [0, 8, 16, 24]])


def test_the_search_finds_the_planted_channels():
    model = planted()
    analysis = analyse(model)
    found = targets(analysis, innermost(analysis, [g for g in analysis.groups if g.allows("permute")]), per_head=True)
    trials = Search(analysis, found, context(), block_format("int4"), 8).run()
    assert [target.heads.size for target in trials] == [HEADS, HEADS]
    for trial in trials.values():
        assert trial.gain < 0.8 and trial.errors[trial.best] == trial.errors.min()
    report = bevel.optimize(model, "reorder-channels{by=search format=int4 block=8}", calibration=FEEDS)
    assert report.steps[0].notes[1].startswith("2 of 2 orders are better")
    assert (norms(model, "wk")[:, :4] > 1).all()


def test_nothing_is_gained_within_one_block_and_nothing_moves():
    model = planted()
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    report = bevel.optimize(model, "reorder-channels{by=search format=int4 block=32}", calibration=FEEDS)
    assert report.steps[0].notes[0].startswith("0 of")
    assert all(np.array_equal(model.graph.initializers[name].const_value.numpy(), before[name]) for name in WEIGHTS)


def test_without_data_the_search_goes_by_weights():
    model = planted()
    bevel.optimize(model, "reorder-channels{by=search format=int4 block=8}")
    large = norms(model, "wk") > 1
    assert (large.reshape(HEADS, 4, 8).any(2).sum(1) == 1).all()


def test_activations_on_made_up_inputs_say_little():
    report = bevel.optimize(planted(), "reorder-channels{by=rms only=wk}")
    assert report.steps[0].notes[1].startswith("activations were measured on made-up inputs")


def test_without_inputs_there_is_nothing_to_measure():
    analysis = analyse(planted())
    found = targets(analysis, [group for group in analysis.groups if group.allows("permute")], per_head=True)
    with pytest.raises(CalibrationError, match="no input"):
        watch(analysis, found, context([]))


def test_the_error_that_is_searched_for_is_that_of_the_output():
    fmt, weight, x = block_format("int4"), RNG.standard_normal((1, 3, 8)), RNG.standard_normal((500, 8))
    places = RNG.permutation(8)
    rounded = np.empty_like(weight)
    rounded[..., places] = fmt.round_trip(weight[..., places].astype(np.float32), 2, 4)
    change = x @ (rounded - weight)[0].T
    expected = np.square(change).mean() / np.square(x @ weight[0].T).mean()
    assert next(output_errors(fmt, 4, weight, (x.T @ x)[None], [places])) == pytest.approx(expected, rel=1e-4)
    assert next(output_errors(fmt, 4, weight, None, [places])) != pytest.approx(expected, rel=1e-3)


def test_an_order_within_a_block_changes_no_vector():
    fmt, vectors = block_format("int4"), RNG.standard_normal((40, 2, 8)).astype(np.float32)
    same, within = np.tile(np.arange(8), (2, 1)), np.array([[3, 1, 0, 2, 4, 5, 7, 6]] * 2)
    across = np.array([[4, 1, 2, 3, 0, 5, 6, 7]] * 2)
    before = vector_error(fmt, 4, vectors, same)
    assert vector_error(fmt, 4, vectors, within) == pytest.approx(before, rel=1e-6)
    assert vector_error(fmt, 4, vectors, across) != pytest.approx(before, rel=1e-6)


def test_keys_are_seen_head_by_head():
    model = planted()
    analysis = analyse(model)
    group = next(g for g in analysis.groups if any(str(m) == "wk[1.1]" for m in g.members))
    (target,) = targets(analysis, [group], per_head=True)
    (seen,) = watch(analysis, [target], context())[target]
    keys = np.concatenate([feed["x"] for feed in FEEDS]) @ model.graph.initializers["wk"].const_value.numpy()
    expected = np.abs(keys.reshape(-1, HEADS, HEAD)).max(0)
    assert seen.held.keys and np.allclose(seen.sizes("absmax"), expected, rtol=1e-4)
    assert np.concatenate(seen.kept).shape[1:] == (HEADS, HEAD)


def test_heads_and_channels_are_both_seen_where_they_are_read():
    analysis = analyse(planted())
    free = [group for group in analysis.groups if group.allows("permute")]
    seen = watch(analysis, targets(analysis, free, per_head=True), context())
    assert {target.group.size: len(found) for target, found in seen.items()} == {HEADS: 1, HEAD: 1}


def test_a_format_that_is_none_is_refused():
    with pytest.raises(UsageError, match="int"):
        bevel.optimize(planted(), "reorder-channels{by=search format=int44}")


def test_chosen_entries_come_to_the_front():
    net = Net("mlp")
    before = net["w1"]
    bevel.optimize(net.model, "reorder-channels{only=w1[1] first=6,2-3}", calibration=net.feeds)
    assert np.allclose(net["w1"], before[:, [2, 3, 6, 0, 1, 4, 5, 7]])


@pytest.mark.parametrize("first", ["8", "x", "3-"])
def test_entries_that_are_none_are_refused(first):
    with pytest.raises(UsageError, match="entry"):
        bevel.optimize(Net("mlp").model, f"reorder-channels{{first={first}}}")


@pytest.mark.parametrize("pipeline", ["reorder-channels", "reorder-channels{by=rms}", "reorder-channels{by=search}"])
@pytest.mark.parametrize("name", ["mlp", "convs", "depthwise", "grouped"])
def test_no_node_is_added(name, pipeline):
    net = Net(name)
    before = len(net.model.graph)
    bevel.optimize(net.model, pipeline, calibration=net.feeds)
    assert len(net.model.graph) == before
