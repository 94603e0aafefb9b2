"""Networks that multiply roundings: what is right is kept, piece by piece, and what is wrong is caught there."""

from dataclasses import dataclass, replace
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from bevel import registry
from bevel.errors import PromiseBroken
from bevel.ir.edit import mask, select
from bevel.ir.groups import Analysis, analyse
from bevel.ir.places import places
from bevel.passes.base import Context, Masked, Outcome, Pass
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.pieces import apart, compare_in_pieces
from bevel.passes.pipeline import optimize
from bevel.passes.prune_channels import PruneChannels
from bevel.passes.sensitivity import nudge, nudged
from bevel.passes.verify import Amplified, Observation, compare
from tests.graphs import graph

DEPTH, WIDTH = 12, 32
FEEDS = [{"x": np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)}]


def chain(gain: float) -> ir.Model:
    """A chain of layers, each of which multiplies and folds back: with a large gain, a chaotic map."""
    layers = [f"h{n} = MatMul (r{n}, w{n}) r{n + 1} = Sin (h{n})" for n in range(DEPTH)]
    body = f"r0 = Identity (x) {' '.join(layers)} y = MatMul (r{DEPTH}, v)"
    text = f"g (float[4, {WIDTH}] x) => (float[4, {WIDTH}] y) {{ {body} }}"
    model = graph(text, {**{f"w{n}": (WIDTH, WIDTH) for n in range(DEPTH)}, "v": (WIDTH, WIDTH)})
    for name, value in model.graph.initializers.items():
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(gain), name=name)
    return model


@pytest.fixture(scope="module")
def chaos() -> ir.Model:
    return chain(gain=2)


def every_other(analysis: Analysis) -> dict[str, np.ndarray]:
    """Keep half of each group, the last first: sums are then taken in another order."""
    return {group.name: np.arange(0, group.size, 2)[::-1] for group in analysis.groups if group.allows("select")}


@dataclass(frozen=True)
class Halve(Pass):
    """Prunes; `factor` is a mistake in one channel in the middle, `told` whether the pass says what is left where."""

    name: ClassVar[str] = "halve"
    promise: ClassVar[Masked] = Masked()
    factor: float = 1.0
    told: bool = True

    def run(self, model: ir.Model, context: Context) -> Outcome:
        analysis = analyse(model)
        keeps = every_other(analysis)
        select(analysis, keeps)
        value = model.graph.initializers["w6"]
        array = value.const_value.numpy().copy()
        array[:, 3] *= np.float32(self.factor)
        value.const_value = ir.tensor(array, name="w6")
        where = places(analysis, keeps) if self.told else None
        return Outcome(reference=lambda given: mask(given, keeps), where=where)


def test_a_chaotic_network_is_pruned_and_the_report_says_what_was_compared(chaos):
    (step,) = optimize(chaos.clone(), Halve(), calibration=FEEDS)
    assert step.verdict.kept and step.error > 1e-3
    assert step.verdict.amplified.pieces > 1 and step.verdict.amplified.error < Masked().rtol
    assert "because the network multiplies roundings" in step.verdict.notes[-1]


def test_a_calm_network_gets_no_second_look():
    (step,) = optimize(chain(gain=0.1), Halve(), calibration=FEEDS)
    assert step.verdict.kept and step.verdict.amplified is None and not step.verdict.notes


@pytest.mark.parametrize("wrong", [Halve(1.5), Halve(1.001), Halve(told=False)], ids=["much", "little", "no map"])
def test_nothing_is_excused_in_a_chaotic_network_that_pieces_do_not_show(chaos, wrong):
    with pytest.raises(PromiseBroken, match="may be rounding, which the network multiplies: one unit in the last"):
        optimize(chaos.clone(), wrong, calibration=FEEDS)


def test_a_mistake_that_rounding_does_not_explain_is_named_as_one():
    with pytest.raises(PromiseBroken, match="this is no rounding: one unit in the last place"):
        optimize(chain(gain=0.1), Halve(1.5), calibration=FEEDS)


@pytest.mark.parametrize(
    ("error", "moved", "kept"), [(3e-5, 1e-5, True), (3e-5, 7e-6, False), (3e-5, 0, False), (2e-3, 2e-3, False)]
)
def test_a_small_error_is_rounding_where_units_make_as_much(error, moved, kept):
    expected, got = (Observation(({"y": np.array([1.0, value], np.float32)},)) for value in (0.5, 0.5 + error))
    verdict = replace(compare(expected, got, Masked()), amplified=Amplified({"y": moved}))
    assert verdict.kept is kept
    assert any("is rounding, which the network multiplies" in note for note in verdict.notes) is kept


def test_prune_channels_says_what_is_left_where_and_a_wrong_map_shows_as_a_difference(chaos):
    result, masked = chaos.clone(), chaos.clone()
    outcome = PruneChannels().run(result, Context(0, FEEDS, None))
    outcome.reference(masked)
    assert compare_in_pieces(masked, result, FEEDS, outcome.where, 8).error < 1e-5
    wrong = places(analysis := analyse(chaos.clone()), every_other(analysis))
    by_name = {value.name: value for value in analysis.facts.axes}
    lie = compare_in_pieces(masked, result, FEEDS, lambda value: wrong(by_name[value.name]), 8)
    assert lie.count > 1 and lie.error > 0.1


CONVOLUTIONS = """
g (float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) <float[6] mean = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}> {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1)  b = BatchNormalization (a, scale, shift, mean, var)  c = Relu (b)
  d = Conv <pads = [1, 1, 1, 1]> (c, w2)  e = Sigmoid (d)  f = Mul (d, e)  y = Conv (f, w3)
}
"""


@pytest.mark.parametrize("name", ["fold", "nest"])
def test_passes_that_keep_what_a_network_computes_say_where_it_is(name):
    sizes = {"w1": (6, 3, 3, 3), "w2": (5, 6, 3, 3), "w3": (4, 5, 1, 1), "scale": (6,), "shift": (6,), "var": (6,)}
    model = graph(CONVOLUTIONS, sizes)
    model.graph.initializers["var"].const_value = ir.tensor(np.linspace(0.5, 2, 6, dtype=np.float32), name="var")
    result, feeds = model.clone(), [{"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}]
    step = registry.passes()[name]()
    outcome = step.run(result, Context(0, Calibration.of(feeds, model), Execution()))
    found = compare_in_pieces(model, result, feeds, outcome.where, 4)
    assert found.count > 2 and found.error < 1e-5
    assert max(deviation.relative for deviation in found.outputs) < 1e-5


def test_large_entries_do_not_hide_what_is_wrong_beside_them():
    scores = np.random.default_rng(0).standard_normal(100)
    scores[:5] = -1e9
    assert apart(scores, scores * np.where(np.arange(100) == 50, 1.001, 1)) > 1e-5
    assert apart(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == np.inf
    assert apart(np.array([1.0, np.inf]), np.array([1.0, np.inf])) == 0


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_number_moves_by_one_unit_but_zeros_and_ends(kind):
    finfo = ml_dtypes.finfo(kind)
    given = np.array([1.5, -3, 0, finfo.min, np.inf], kind)
    moved = nudge(given, 1)
    assert (moved[:2] != given[:2]).all() and np.allclose(moved[:2].astype(float), [1.5, -3], rtol=float(finfo.eps))
    assert moved[2] == 0 and np.isfinite(moved[3].astype(float)) and np.isinf(moved[4].astype(float))


def test_vectors_and_integers_stay_where_they_are():
    text = "g (float[n, 2] x) => (float[n, 2] y) <float[2] b = {1, 2}> { h = MatMul (x, w) y = Add (h, b) }"
    model = graph(text, {"w": (2, 2)})
    before, after = model.graph.initializers, nudged(model).graph.initializers
    assert np.array_equal(after["b"].const_value.numpy(), [1, 2])
    assert (after["w"].const_value.numpy() != before["w"].const_value.numpy()).all()
    assert nudge(np.arange(3), 0).tolist() == [0, 1, 2]


def test_a_number_without_axes_crosses_a_cut():
    text = """
    g (float[n, 8] x) => (float[n, 8] y) {
      total = ReduceSum <keepdims = 0> (x)  a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, w)  y = Mul (c, total)
    }"""
    model = graph(text, {"w": (8, 8)})
    feeds = [{"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}]
    found = compare_in_pieces(model, model, feeds, places(analyse(model), {}), 4)
    assert found.count > 2 and found.error == 0


def test_vectors_of_channels_move_and_lists_of_sizes_stay():
    text = 'g (float[n, 64] x) => (float[m, 64] y) { h = Mul (x, gain)  y = Resize <mode = "nearest"> (h, , sizes) }'
    model = graph(text, {"gain": (64,), "sizes": (2,)})
    before, after = model.graph.initializers, nudged(model).graph.initializers
    moved = {
        name: not np.array_equal(before[name].const_value.numpy(), after[name].const_value.numpy()) for name in before
    }
    assert moved == {"gain": True, "sizes": False}
