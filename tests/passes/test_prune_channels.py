"""Pruning by every option, executed and verified."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import BudgetMissed, UsageError
from bevel.ir.cost import cost
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.options import render
from bevel.passes.pipeline import optimize, parse
from bevel.passes.prune_channels import PruneChannels
from tests import zoo
from tests.graphs import graph, mlp, snapshot

ALLOCATIONS = ("uniform", "global", "isomorphic", "angular", "slope", "milp")

TWO = """
two (float[n, 6] x) => (float[n, 3] y) {
  a = MatMul (x, w1)  b = Relu (a)  c = MatMul (b, w2)  d = Relu (c)  y = MatMul (d, w3)
}
"""
TWO_WEIGHTS = {"w1": (6, 16), "w2": (16, 40), "w3": (40, 3)}

CONVOLUTIONS = """
convolutions (float[n, 3, 8, 8] x) => (float[n, 10] y) {
  a = Conv <pads=[1, 1, 1, 1]> (x, k1)  b = Relu (a)
  c = Conv <pads=[1, 1, 1, 1]> (b, k2)  d = Relu (c)
  p = GlobalAveragePool (d)  f = Flatten (p)  y = Gemm (f, w)
}
"""
KERNELS = {"k1": (48, 3, 3, 3), "k2": (64, 48, 3, 3), "w": (64, 10)}


def two():
    return graph(TWO, TWO_WEIGHTS)


def widths(model):
    return {name: tuple(value.const_value.shape) for name, value in model.graph.initializers.items()}


def notes(report):
    return "\n".join(report.steps[0].notes)


def test_half_of_every_group_goes_by_default():
    model = two()
    optimize(model, "prune-channels")
    assert widths(model) == {"w1": (6, 8), "w2": (8, 20), "w3": (20, 3)}


def test_the_lowest_scores_go():
    model = mlp()
    weights = model.graph.initializers["w1"].const_value.numpy().copy()
    both = np.concatenate([weights, model.graph.initializers["w2"].const_value.numpy().T])
    strongest = np.sort(np.argsort(-np.linalg.norm(both, axis=0))[:2])
    optimize(model, "prune-channels{ratio=0.75}")
    assert np.array_equal(model.graph.initializers["w1"].const_value.numpy(), weights[:, strongest])


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("name", ["resnet", "llama", "swin", "mobilenet"])
def test_every_allocation_reaches_a_target_from_below(allocation, name):
    model = bevel.load(zoo.path(name))
    before = cost(model)
    text = f'prune-channels{{allocation={allocation} target="macs=0.7x"}}'
    report = optimize(model, text, calibration=[feed for feed, _ in zoo.trials(name)])
    assert 0.6 * before.macs < cost(model).macs <= 0.7 * before.macs
    assert report.steps[0].error <= bevel.Masked().rtol
    assert "target macs=0.7x: 0." in notes(report)


@pytest.mark.parametrize(
    ("target", "figure", "limit"),
    [
        ("parameters=0.5x", "parameters", 0.5 * 856),
        ("parameters=0.4k", "parameters", 400),
        ("size=1.5kB", "bytes", 1500),
        ("macs=0.6k", "macs", 600),
        ("macs=5M", "macs", 856),
    ],
)
def test_a_target_may_be_relative_or_absolute(target, figure, limit):
    model = two()
    optimize(model, f'prune-channels{{target="{target}"}}')
    reached = getattr(cost(model), figure)
    assert reached <= limit
    assert reached >= 0.85 * limit  # one entry of the larger group is 5% of it


def test_a_target_that_cannot_be_reached_is_refused_before_the_first_write():
    model = two()
    before = snapshot(model)
    with pytest.raises(BudgetMissed, match=r"at the least widths it is 0.0117x"):
        optimize(model, 'prune-channels{target="macs=0.01x"}')
    assert snapshot(model) == before
    optimize(model, 'prune-channels{target="macs=0.0118x"}')
    assert widths(model) == {"w1": (6, 1), "w2": (1, 1), "w3": (1, 3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "target": "macs=0.5x"}, "exclude each other"),
        ({"target": "macs"}, "is not a limit"),
        ({"target": "error=0.5"}, "no target is called 'error'"),
        ({"allocation": "globl"}, "did you mean 'global'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        PruneChannels(**options)


def test_a_target_survives_the_trip_through_text():
    chosen = PruneChannels(target="latency=0.6x", steps=2)
    assert render(chosen) == 'prune-channels{target="latency=0.6x" steps=2}'
    assert parse(str(chosen)).passes == (chosen,)


def test_widths_are_rounded_up_to_channels_and_heads_are_whole():
    model = graph(CONVOLUTIONS, KERNELS)
    optimize(model, "prune-channels{ratio=0.6 round-to=16}")
    assert widths(model)["k2"] == (32, 32, 3, 3)
    model = bevel.load(zoo.path("llama"))
    optimize(model, "prune-channels{ratio=0.5 round-to=8}", verify=False)
    free = bevel.load(zoo.path("llama"))
    optimize(free, "prune-channels{ratio=0.5}", verify=False)
    assert widths(model) == widths(free)  # heads of 8 channels or more: any number of them is a multiple


def test_the_least_width_stays():
    model = two()
    report = optimize(model, "prune-channels{ratio=0.9 min-width=16}")
    assert widths(model) == {"w1": (6, 16), "w2": (16, 16), "w3": (16, 3)}
    assert "left alone: w1[1] (16 entries): no smaller width is allowed" in notes(report)


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_steps_end_at_the_same_widths(schedule):
    once, often = two(), two()
    optimize(once, "prune-channels{ratio=0.7}")
    report = optimize(often, f"prune-channels{{ratio=0.7 steps=3 schedule={schedule}}}")
    assert widths(often) == widths(once)
    assert report.steps[0].error <= bevel.Masked().rtol


@pytest.mark.parametrize(("steps", "stays"), [(1, True), (4, False)])
def test_each_step_scores_what_is_left(steps, stays):
    """Entry 0 of the first group is large only towards entries of the second group that go themselves."""
    model = two()
    into, between, out = np.full((6, 16), 0.1), np.full((16, 40), 0.5), np.full((40, 3), 0.1)
    into[:, 0], out[8:] = 0.2, 5
    between[0] = 0.1
    between[0, :8], between[1:, :8] = 3, 0.1
    for name, array in (("w1", into), ("w2", between), ("w3", out)):
        model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    optimize(model, f"prune-channels{{ratio=0.5 steps={steps}}}")
    left = model.graph.initializers["w1"].const_value.numpy()
    assert np.any(left == np.float32(0.2)) == stays


@pytest.mark.parametrize("name", ["llama", "vit", "resnet", "shufflenet"])
def test_schedules_are_verified_on_real_graphs(name):
    model = bevel.load(zoo.path(name))
    text = "prune-channels{ratio=0.5 steps=3 allocation=global}"
    report = optimize(model, text, calibration=[feed for feed, _ in zoo.trials(name)])
    assert report.steps[0].error <= bevel.Masked().rtol


@pytest.mark.parametrize(
    ("pattern", "smaller"),
    [
        ("only=w1", {"w1"}),
        ("only=w1[1]", {"w1"}),
        ("only=depth:0", {"w1"}),
        ("only=depth:1-1", {"w2"}),
        ("only=depth:0-50%", {"w1"}),
        ("skip=depth:0", {"w2"}),
        ("only=op:MatMul", {"w1", "w2"}),
        ("skip=op:Conv", {"w1", "w2"}),
        ("only=op:Mat*", {"w1", "w2"}),
        ("skip=op:MatMul", set()),
        ("only=depth:0-2 skip=w3", {"w1"}),
    ],
)
def test_groups_are_chosen_by_name_operator_and_depth(pattern, smaller):
    model = two()
    report = optimize(model, f"prune-channels{{{pattern}}}")
    assert {name for name in ("w1", "w2") if widths(model)[name][1] < TWO_WEIGHTS[name][1]} == smaller
    assert ("not asked for" in notes(report)) == (len(smaller) < 2)


@pytest.mark.parametrize(
    "pattern", ["only=nothing", "only=depth:x", "only=depth:5%", "only=depth:9", "only=factor:first"]
)
def test_patterns_that_mean_nothing_are_errors(pattern):
    with pytest.raises(UsageError):
        optimize(two(), f"prune-channels{{{pattern}}}")


@pytest.mark.parametrize("name", ["gpt", "bert", "vit", "swin", "llama", "llama-fused"])
def test_head_size_shrinks_where_heads_are_left_alone(name):
    model = bevel.load(zoo.path(name))
    before = {group.name: group.size for group in bevel.groups(model)}
    feeds = [feed for feed, _ in zoo.trials(name)]
    report = optimize(model, "prune-channels{only=factor:inner skip=factor:outer,factor:middle}", calibration=feeds)
    after = {group.name: group.size for group in bevel.groups(model)}
    assert report.steps[0].error <= bevel.Masked().rtol
    smaller = [group for group, size in before.items() if after.get(group, 1) < size]
    assert len(smaller) >= 2
    assert all("." in group.rpartition("[")[2] for group in smaller)  # part of an axis, never all of one


def test_key_value_groups_are_units_with_their_queries():
    model = bevel.load(zoo.path("llama"))
    sizes = {group.name: group.size for group in bevel.groups(model) if group.allows("select")}
    optimize(model, "prune-channels{ratio=0.5}", calibration=[feed for feed, _ in zoo.trials("llama")])
    after = {group.name: group.size for group in bevel.groups(model)}
    units = [name for name, size in sizes.items() if size > 1 and after.get(name, 1) < size]
    assert any(".0]" in name for name in units)


def test_everything_left_alone_is_named_with_its_reason():
    model = bevel.load(zoo.path("llama"))
    found = bevel.groups(model)
    said = notes(optimize(model, "prune-channels", verify=False))
    assert "Gather 'node_embedding': its entries are addressed by value" in said
    assert "another factor of the same axis shrinks" in said
    pruned = int(said.split(" of ")[0])
    assert pruned + sum(named(line) for line in said.splitlines() if line.startswith("left alone")) == len(found)


def named(line):
    return 1 + int(line.split(" and ")[1].split(" more")[0]) if " more: " in line else 1


class Paced:
    """A runtime in which a model takes a fixed time and so much a multiply-accumulate."""

    block = 16

    def __init__(self, fixed=0.0):
        self.fixed, self.asked = fixed, []

    def latencies(self, models, feed):
        self.asked.append([cost(model).macs for model in models])
        return tuple(self.fixed + macs / 1e3 for macs in self.asked[-1])


def paced(text, runtime, model):
    (step,) = parse(f"prune-channels{{{text}}}").passes
    context = Context(0, Calibration.of([{"x": np.zeros((1, 3, 8, 8), np.float32)}], model), runtime)
    return step.run(model, context)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_latency_is_measured_and_met_in_whole_blocks(steps):
    model, runtime = graph(CONVOLUTIONS, KERNELS), Paced()
    before = cost(model).macs
    outcome = paced(f'target="latency=0.6x" steps={steps}', runtime, model)
    assert cost(model).macs <= 0.6 * before
    assert all(asked[0] == before for asked in runtime.asked)  # in turns with the original, whatever came before
    assert len(runtime.asked) <= 16
    assert widths(model)["k1"][0] % 16 == widths(model)["k2"][0] % 16 == 0
    assert any(note.startswith("target latency=0.6x: 0.") and "measured" in note for note in outcome.notes)


def test_blocks_are_the_users_if_he_says_so():
    model = graph(CONVOLUTIONS, KERNELS)
    before = cost(model).macs
    paced('target="latency=0.6x" round-to=1', Paced(), model)
    assert 0.57 * before <= cost(model).macs <= 0.6 * before


def test_an_absolute_latency_is_one_of_the_machine():
    model, runtime = graph(CONVOLUTIONS, KERNELS), Paced()
    now = cost(model).macs / 1e3
    paced(f'target="latency={0.5 * now:.3f}ms" round-to=1', runtime, model)
    assert runtime.asked[0] == [now * 1e3]
    assert 0.45 * now <= cost(model).macs / 1e3 <= 0.5 * now


def test_a_latency_out_of_reach_is_refused_before_the_first_write():
    model = graph(CONVOLUTIONS, KERNELS)
    before = snapshot(model)
    with pytest.raises(BudgetMissed, match="the fastest of"):
        paced('target="latency=0.5x"', Paced(fixed=cost(model).macs / 1e3 * 2), model)
    assert snapshot(model) == before


@pytest.mark.parametrize("target", ["latency=2x", "macs=1x", "parameters=9M"])
def test_a_target_that_holds_already_changes_nothing(target):
    model = graph(CONVOLUTIONS, KERNELS)
    before = widths(model)
    optimize(model, f'prune-channels{{target="{target}" steps=2}}')
    assert widths(model) == before
