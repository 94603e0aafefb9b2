from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel import registry
from bevel.errors import EditRefused, PromiseBroken, UsageError
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.feed_forward import feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.names import Names
from bevel.ir.split import Partition, Parts
from bevel.passes.base import REASSOCIATION_RTOL, Context, Preserving
from bevel.passes.calibration import Calibration
from bevel.passes.convert_moe import ConvertMoe
from bevel.passes.execution import Execution
from bevel.passes.experts.balance import MOST_EXACT, deal
from bevel.passes.experts.blocks import blocks
from bevel.passes.experts.budget import Division, Rung, allocate
from bevel.passes.experts.emission import masked
from bevel.passes.experts.emissions import EMISSIONS, Emission, Integers, check
from bevel.passes.experts.evidence import evidence
from bevel.passes.experts.fits import choices
from bevel.passes.experts.gather import gather
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.routers import Linear
from bevel.passes.experts.routing import decide
from bevel.passes.pipeline import optimize
from bevel.passes.verify import verify
from bevel.testing import check_pass
from tests.graphs import graph
from tests.ir.test_feed_forward import LAYERS, made

SPLITTERS, ROUTERS = registry.splitters(), registry.routers()
# Rows come from eight directions; each is read by four hidden entries of its own.
DIRECTIONS, EACH, WIDTH = 8, 4, 16
PLANTED = """
planted (float[n, 16] x) => (float[n, 16] y) {
  h = MatMul (x, up)
  r = Relu (h)
  y = MatMul (r, down)
}
"""


def planted(seed=0):
    """A layer with an expert for each direction, its entries in random order; rows, and the direction of each."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    home = rng.permutation(np.arange(DIRECTIONS * EACH) % DIRECTIONS)
    size = len(home)
    up = basis[:, home] * rng.uniform(0.8, 1.2, size) + 0.02 * rng.standard_normal((WIDTH, size))
    model = graph(PLANTED, {"up": (WIDTH, size), "down": (size, WIDTH)})
    model.graph.initializers["up"].const_value = ir.tensor(up.astype(np.float32), name="up")
    direction = rng.integers(0, DIRECTIONS, 256)
    rows = 3 * basis.T[direction] + 0.1 * rng.standard_normal((256, WIDTH))
    feeds = [{"x": part.astype(np.float32)} for part in np.split(rows, 8)]
    return model, feeds, home, direction


def context(feeds):
    return Context(0, Calibration(lambda: feeds, "a test"), Execution(), samples=10**6)


def found(model, feeds):
    return next(evidence(model, feed_forwards(analyse(model))[0], context(feeds)))


def mixture(size, width, experts=3, active=2, shared=True, **more):
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.arange(size) % (experts + shared)) - shared
    router = Linear(rng.standard_normal((width, experts)), rng.standard_normal(experts))
    return Mixture(Partition.of(owners, experts), router, active, **more)


def emitted(model, how, each):
    copy = model.clone()
    (layer,), _ = feed_forwards(analyse(copy))
    how(Parts(copy, layer), each, Names(copy))
    remove_dead(copy)
    return copy


GATES = {"gain": {"gain": 1.5}, "soft": {"soft": True}, "few": {"threshold": 0.6, "soft": True, "active": 3}}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("shared", "gates"), [(True, "gain"), (False, "soft"), (True, "few")])
def test_blocks_and_copies_are_what_the_mask_gives(name, shared, gates):
    model, feeds = made(name)
    (layer,), _ = feed_forwards(analyse(model))
    each = mixture(layer.size, layer.channels[0], shared=shared, **GATES[gates])
    reference = emitted(model, masked, each)
    assert verify(model, reference, feeds, Preserving()).error > 100 * REASSOCIATION_RTOL
    assert verify(reference, emitted(model, blocks, each), feeds, Preserving()).error <= REASSOCIATION_RTOL
    if name == "fused":
        with pytest.raises(EditRefused, match="part of an axis of a weight"):
            emitted(model, gather, each)
    else:
        assert verify(reference, emitted(model, gather, each), feeds, Preserving()).error <= REASSOCIATION_RTOL


def test_a_threshold_takes_as_many_experts_as_it_needs():
    model, feeds = made("gemms")
    evident = found(model, feeds)
    bias = np.array([3.0, 2.0, 0.0])
    shares = np.exp(bias) / np.exp(bias).sum()  # 0.71, 0.26, 0.04
    for threshold, count in ((0.5, 1), (0.9, 2), (0.99, 3)):
        each = Mixture(mixture(12, 6).partition, Linear(np.zeros((6, 3)), bias), 3, threshold=threshold)
        assert (decide(evident.parts, each, evident.rows, Execution()) == (np.arange(3) < count)).all()
        soft = decide(evident.parts, replace(each, soft=True), evident.rows, Execution())
        assert np.allclose(soft[0, :count], count * shares[:count] / shares[:count].sum())
    few = Mixture(mixture(12, 6).partition, Linear(np.zeros((6, 3)), bias), 2, threshold=0.99)
    assert (decide(evident.parts, few, evident.rows, Execution()).sum(1) == 2).all()


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("name", ["moe", "qmoe", "dynamic"])
def test_operators_and_integers_are_what_the_mask_gives(name, soft):
    model = graph(SWIGLU, SWIGLU_WEIGHTS)
    evident = found(model, [{"x": np.random.default_rng(1).standard_normal((2, 32, 32)).astype(np.float32)}])
    each = mixture(128, 32, experts=3, active=2, gain=1.0 if soft else 1.5)
    check(evident, replace(each, soft=soft), name, Integers(8, 16))

    def lie(*given):
        return lambda parts, mixture, names: honest(*given)(parts, replace(mixture, gain=1.1 * mixture.gain), names)

    honest = EMISSIONS[name].prepare
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PromiseBroken, match="away from the mask"):
        patch.setitem(EMISSIONS, name, replace(EMISSIONS[name], prepare=lie))
        check(evident, replace(each, soft=soft), name, Integers(8, 16))


@pytest.mark.parametrize(
    ("tolerance", "times", "operator", "told"),
    [
        (0.0, (4.0, 3.0, 2.0), "Gather", "gather 3x, moe 2x, blocks 1.5x"),
        (0.0, (4.0, 3.0, 5.0), "MoE", "moe 2x, blocks 1.5x, gather 1.2x"),
        (1.0, (4.0, 1.0, 3.0, 2.0), "If", "dynamic 6x, gather 3x, moe 2x, blocks 1.5x"),
    ],
)
def test_the_fastest_emission_that_is_right_is_taken(monkeypatch, tolerance, times, operator, told):
    model, feeds, *_ = planted()
    monkeypatch.setattr(Execution, "latencies", lambda self, models, feed: (6.0, *times))
    options = {"experts": 4, "active": 2, "shared": 0, "emit": "auto", "rows": 3, "tolerance": tolerance}
    (step,) = optimize(model, ConvertMoe(**options, splitter="random", control="skip"), calibration=feeds).steps
    assert any(f"measured on 3 rows: {told}" in note for note in step.notes)
    assert operator in {node.op_type for node in model.graph}


@pytest.mark.parametrize("how", [masked, blocks])
def test_all_experts_together_are_the_layer(how):
    model, feeds = made("gemms")
    result = emitted(model, how, mixture(12, 6, active=3))
    assert verify(model, result, feeds, Preserving()).error <= REASSOCIATION_RTOL


def test_an_expert_that_no_row_takes_does_not_run():
    model, feeds = made("gemms")
    router = Linear(np.zeros((6, 3)), np.array([0.0, 1.0, 2.0]))
    each = Mixture(mixture(12, 6).partition, router, 1)
    result = emitted(model, blocks, each)
    branches = [node.attributes["then_branch"].as_graph() for node in result.graph if node.op_type == "If"]
    for branch in branches[:2]:  # what would be seen if it ran
        for value in branch.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.tensor(np.full(value.const_value.shape.numpy(), np.nan, np.float32))
    with Execution().open(result) as runs:
        assert np.isfinite(runs.run(feeds[0])["y"]).all()
    assert verify(emitted(model, masked, each), result, feeds, Preserving()).error <= REASSOCIATION_RTOL


@pytest.mark.parametrize("name", SPLITTERS)
def test_splitters_give_parts_of_one_size(name):
    model, feeds, *_ = planted()
    for shared in (0, 8):
        partition = SPLITTERS[name](found(model, feeds), 4, shared, np.random.default_rng(0))
        assert len(partition.shared) == shared
        assert {len(part) for part in partition.routed} == {(32 - shared) // 4}
        partition.owners(32)  # refuses what is no partition


@pytest.mark.parametrize("name", ["kmeans", "rates", "coactivation", "profiles"])
def test_what_is_active_together_comes_together(name):
    model, feeds, home, _ = planted()
    evident = found(model, feeds)
    partition = SPLITTERS[name](evident, DIRECTIONS, 0, np.random.default_rng(0))
    alike = np.mean([np.bincount(home[part]).max() / EACH for part in partition.routed])
    assert alike > 0.9 if name != "rates" else alike > 0.6  # one assignment to single entries is all that CMoE makes
    assert np.mean([np.bincount(home[part]).max() / EACH for part in np.split(np.arange(32), DIRECTIONS)]) < 0.6


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_send_rows_to_the_experts_of_their_direction(name):
    model, feeds, home, direction = planted()
    evident = found(model, feeds)
    partition = Partition(np.array([], np.int64), tuple(np.flatnonzero(home == each) for each in range(DIRECTIONS)))
    each = Mixture(partition, ROUTERS[name](evident, partition, 1), 1)
    taken = decide(evident.parts, each, evident.rows, Execution()) > 0
    assert (taken.sum(1) == 1).all()
    assert (taken.argmax(1) == direction).mean() > 0.95
    lost = np.linalg.norm(evident.hidden * ~taken[:, home]) / np.linalg.norm(evident.hidden)
    assert lost < 0.1


def test_the_best_experts_are_those_whose_absence_costs_least():
    model, feeds = made("gemms")
    evident = found(model, feeds)
    partition = mixture(12, 6).partition
    best = choices(evident, partition, 2, slice(0, 7))
    parts = np.stack([evident.hidden[:, part] @ evident.down[part] for part in partition.routed], 1)
    alone = np.linalg.norm(parts, axis=2)
    assert (best.sum(1) == 2).all()
    assert (~best[np.arange(7), alone.argmin(1)]).all()


def test_many_items_are_dealt_out_evenly_too():
    costs = np.random.default_rng(0).random((MOST_EXACT + 8, 8))
    owners = deal(costs)
    assert np.bincount(owners).tolist() == [(MOST_EXACT + 8) // 8] * 8
    assert costs[np.arange(len(owners)), owners].mean() < 0.25  # a half by chance


def test_the_pass_behaves_and_says_what_plain_pruning_does():
    model, feeds, *_ = planted()
    step = check_pass(ConvertMoe(experts=8, active=1, shared=0, splitter="kmeans"), model, feeds)
    assert step.error < 0.1
    text = "\n".join(step.notes)
    assert "1 feed-forward layers are mixtures of 8 experts, 0 of them shared, 1 active: 88%" in text
    assert "with plain pruning to the same active width" in text and "no worse" not in text


def test_plain_pruning_is_done_where_it_is_no_worse():
    model, feeds, *_ = planted()
    weights = model.graph.initializers["up"].const_value.numpy().copy()
    weights[:, 8:] = weights[:, :1]  # all entries but eight are one
    model.graph.initializers["up"].const_value = ir.tensor(weights, name="up")
    options = {"experts": 4, "active": 2, "shared": 0, "splitter": "random", "router": "mean-gate"}
    report = check_pass(ConvertMoe(**options), model, feeds)
    assert any("control=use takes it there" in note for note in report.notes)
    optimize(model, ConvertMoe(**options, control="use"), calibration=feeds)
    assert {node.op_type for node in model.graph} == {"MatMul", "Relu", "Identity"}
    assert sorted(tuple(value.shape) for value in model.graph.initializers.values()) == [(16, 16), (16, 16)]


def test_no_emission_is_taken_where_none_is_right(monkeypatch):
    model, feeds, *_ = planted()
    for name in EMISSIONS:
        monkeypatch.setitem(EMISSIONS, name, replace(EMISSIONS[name], limit=lambda bits: -1.0))
    options = {"experts": 4, "active": 2, "shared": 0, "splitter": "random", "router": "mean-gate", "control": "skip"}
    with pytest.raises(EditRefused, match="no emission gives what the mask gives"):
        optimize(model, ConvertMoe(**options, emit="auto"), calibration=feeds)


def test_a_budget_goes_where_it_does_most():
    def rungs(*errors):
        return [Rung(Division(active, 0), error, 0.5) for active, error in enumerate(errors, 1)]

    easy, hard = rungs(0.1, 0.05, 0.0), rungs(0.9, 0.6, 0.3)
    (few, more) = allocate([easy, hard], [100, 100], [1, 1], 4, 0.5).divisions
    assert (few, more) == (Division(1, 0), Division(3, 0))
    even = allocate([easy, easy], [100, 100], [1, 1], 4, 0.5)
    assert sum(each.active for each in even.divisions) == 4
    assert allocate([easy, hard], [100, 100], [1, 1], 4, 0.625).divisions == (Division(1, 0), None)
    assert allocate([easy, hard], [100, 100], [100, 1], 4, 0.5).divisions == (Division(3, 0), Division(1, 0))
    assert allocate([easy, hard], [300, 100], [1, 1], 4, 0.5).divisions[0] == Division(1, 0)


def test_layers_get_experts_from_a_budget_and_thresholds_take_fewer():
    model, feeds, *_ = planted()
    options = {"experts": 4, "splitter": "kmeans", "refit": False}
    (step,) = optimize(model.clone(), ConvertMoe(**options, budget=0.5), calibration=feeds).steps
    assert any("active experts of each layer, those shared in brackets: 2 (0)" in note for note in step.notes)
    assert any("with plain pruning to widths as freely chosen" in note for note in step.notes)
    whole = model.clone()
    optimize(whole, ConvertMoe(**options, budget=1.0), calibration=feeds)
    assert [node.op_type for node in whole.graph] == ["MatMul", "Relu", "MatMul"]
    few = ConvertMoe(**options, active=3, shared=0, threshold=0.5, gates="softmax")
    (step,) = optimize(model, few, calibration=feeds).steps
    assert any("at most 3 active" in note for note in step.notes)
    with pytest.raises(UsageError, match="different numbers of experts"):
        ConvertMoe(threshold=0.5, emit="qmoe")


def test_blocks_that_lie_are_caught(monkeypatch):
    model, feeds, *_ = planted()

    def lie(parts, each, names):
        blocks(parts, Mixture(each.partition, each.router, each.active, 1.01), names)

    monkeypatch.setitem(EMISSIONS, "blocks", Emission(lambda found, down, integers: lie))
    with pytest.raises(PromiseBroken, match="away from the mask"):
        optimize(model, ConvertMoe(experts=4, active=1, shared=0), calibration=feeds)


def test_the_oracle_takes_what_is_best_for_the_output():
    model, feeds, *_ = planted()
    each = found(model, feeds)
    partition = Partition.of(np.random.default_rng(0).permutation(each.layer.size) % 4, 4)
    for active in (1, 3):
        taken, other = (
            decide(
                each.parts, Mixture(partition, ROUTERS[name](each, partition, active), active), each.rows, each.runtime
            )
            for name in ("oracle", "mean-gate")
        )
        best = choices(each, partition, active, slice(None))
        assert (taken[best] > 0).mean() > 0.99  # equals are told apart by rounding
        assert (other[best] > 0).mean() < 0.99


def test_refusals():
    model, feeds, *_ = planted()
    with pytest.raises(EditRefused, match="do not divide by 5"):
        optimize(model, ConvertMoe(experts=5, active=4), calibration=feeds)
    with pytest.raises(UsageError, match="did you mean 'kmeans'"):
        ConvertMoe(splitter="kmean")
    with pytest.raises(UsageError, match="cannot run if 3 of them are shared"):
        ConvertMoe(active=3)
    with pytest.raises(UsageError, match="computes all experts"):
        ConvertMoe(router="oracle")


SWIGLU = """
swiglu (float[n, s, 32] x) => (float[n, s, 32] y) {
  g = MatMul (x, gate)
  e = Sigmoid (g)
  a = Mul (g, e)
  u = MatMul (x, up)
  ub = Add (u, bias)
  h = Mul (a, ub)
  y = MatMul (h, down)
}
"""
SWIGLU_WEIGHTS = {"gate": (32, 128), "up": (32, 128), "bias": (128,), "down": (128, 32)}


@pytest.mark.parametrize(("bits", "near"), [(4, 0.2), (8, 0.015)])
def test_integer_experts_are_near_the_layer(bits, near):
    model = graph(SWIGLU, SWIGLU_WEIGHTS)
    feeds = [{"x": np.random.default_rng(1).standard_normal((2, 64, 32)).astype(np.float32)}]
    options = {"experts": 4, "active": 4, "emit": "qmoe", "bits": bits, "block": 16}
    step = optimize(model.clone(), ConvertMoe(shared=0, **options), calibration=feeds)
    assert near / 20 < step.error < near
    shared = optimize(model, ConvertMoe(shared=2, **options), calibration=feeds)
    assert shared.error < step.error


def test_integer_experts_refuse_what_the_operator_does_not_have():
    model, feeds = made("gated")
    with pytest.raises(EditRefused, match="do not divide into blocks of 32"):
        optimize(model, ConvertMoe(experts=4, active=4, shared=0, emit="qmoe"), calibration=feeds)
    tanh = graph(SWIGLU.replace("Sigmoid", "Tanh"), SWIGLU_WEIGHTS)
    feeds = [{"x": np.ones((2, 64, 32), np.float32)}]
    with pytest.raises(EditRefused, match="no such activation"):
        optimize(tanh, ConvertMoe(experts=4, active=4, shared=0, emit="qmoe"), calibration=feeds)
    with pytest.raises(UsageError, match="QMoE has 4 and 8"):
        ConvertMoe(bits=6)


def test_the_published_recipes_run_as_they_are():
    model, feeds, *_ = planted()
    cmoe = ConvertMoe(experts=8, active=6, splitter="rates", router="analytic", refit=False)
    weaver = ConvertMoe(experts=8, active=6, shared=None, splitter="profiles", router="mean-gate", refit=False)
    for recipe in (cmoe, weaver):
        copy = model.clone()
        report = optimize(copy, recipe, calibration=feeds)
        down = [value for value in copy.graph.initializers.values() if value.name.endswith("shared.down")]
        assert report.error > 0 and len(down) == 1  # what is shared is as it was, for nothing was fitted
        original = model.graph.initializers["down"].const_value.numpy()
        rows = {row.tobytes() for row in original}
        assert all(row.tobytes() in rows for row in down[0].const_value.numpy())


def test_what_comes_out_is_a_whole_model(tmp_path):
    model, feeds, *_ = planted()
    optimize(model, ConvertMoe(experts=8, active=2, shared=1, splitter="kmeans"), calibration=feeds)
    computed = [value for inner in model.graphs() for node in inner for value in node.outputs]
    assert [value.name for value in computed if value.shape is None or value.type is None] == []
    assert all(value.const_value is None for value in computed)
    bevel.save(model, tmp_path / "experts.onnx")
    onnx.checker.check_model(tmp_path / "experts.onnx", full_check=True)
    again = bevel.load(tmp_path / "experts.onnx")
    assert verify(model, again, feeds, Preserving()).error <= REASSOCIATION_RTOL
    report = optimize(again, "reorder-channels,prune-channels{ratio=0.25}", calibration=feeds)
    assert all("0 of" not in step.notes[0] for step in report.steps)  # experts are layers like others


def test_an_older_opset_is_raised():
    model, feeds, *_ = planted()
    model.opset_imports[""] = 11
    report = bevel.optimize(model, ConvertMoe(emit="blocks"), calibration=feeds)
    assert model.opset_imports[""] == 13
    assert "the model has opset 13 now: experts need it" in report.steps[0].notes


def test_a_layer_that_overflows_is_named_with_what_to_do():
    model, feeds, *_ = planted()
    huge = [{"x": feed["x"] * np.float32(1e20)} for feed in feeds]
    with pytest.raises(EditRefused, match=r"layer 'up\[1\]': what it computes of the samples overflows\n.*skip=up"):
        bevel.optimize(model, "convert-moe{experts=8 active=2 shared=0}", calibration=huge)
