import gc
import math

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import CalibrationError, EditRefused, PassFailed, PromiseBroken, UnsupportedModel
from bevel.passes.pipeline import Hooks, optimize
from tests.graphs import graph, mlp, snapshot
from tests.stub_passes import Breaks, LossyScale, Nothing, Raises, Refuses, Renames, Scale, Zero


def test_a_kept_promise_changes_the_callers_model():
    model = mlp()
    before = model.graph.initializers["w2"].const_value.numpy().copy()
    report = optimize(model, [LossyScale(factor=2)])
    assert np.array_equal(model.graph.initializers["w2"].const_value.numpy(), 2 * before)
    assert report.steps[0].verdict.outputs[0].relative == pytest.approx(1.0)
    assert report.error == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (
            Scale(factor=1.001),
            PromiseBroken,
            "scale: promised Preserving (error at most 1e-05), but output 'y' has error",
        ),
        (Zero(lie=True), PromiseBroken, "zero: promised Masked"),
        (Raises(), PassFailed, "raises: raised KeyError: 'a bug'"),
        (Refuses(), EditRefused, "no channel is free"),
        (Renames(), PromiseBroken, "changed the model's outputs from ['y'] to ['other']"),
        (Breaks(), PromiseBroken, "breaks: its result cannot be loaded in ONNX Runtime"),
    ],
)
def test_whatever_stops_a_run_leaves_the_model_as_it_was(step, error, message):
    model = mlp()
    kept_graph, before = model.graph, snapshot(model)
    with pytest.raises(error) as caught:
        optimize(model, [LossyScale(factor=2), step])
    assert message in str(caught.value)
    assert model.graph is kept_graph
    assert snapshot(model) == before


def test_an_honest_mask_is_kept():
    assert optimize(mlp(), Zero()).steps[0].error == 0


def test_without_verification_nothing_is_measured_and_the_lie_goes_through():
    report = optimize(mlp(), Scale(factor=2), verify=False)
    assert report.steps[0].verdict is None
    assert math.isnan(report.error)
    assert "not verified" in str(report)


def test_a_lossy_pass_is_held_to_the_users_limit():
    assert optimize(mlp(), LossyScale(factor=1.001), max_error=0.01).error == pytest.approx(0.001, rel=0.01)
    with pytest.raises(PromiseBroken, match="lossy-scale"):
        optimize(mlp(), LossyScale(factor=1.1), max_error=0.01)


def test_a_dry_run_reports_and_changes_nothing():
    model = mlp()
    before = snapshot(model)
    assert len(optimize(model, [LossyScale(factor=2)], dry_run=True)) == 1
    assert snapshot(model) == before


def test_the_same_input_options_and_seed_give_the_same_bytes():
    first, second = mlp(), mlp()
    optimize(first, "simplify,fold", seed=3)
    optimize(second, "simplify,fold", seed=3)
    assert snapshot(first) == snapshot(second)


def test_two_instances_of_one_pass_both_run():
    model = mlp()
    before = model.graph.initializers["w2"].const_value.numpy().copy()
    optimize(model, [LossyScale(factor=2), LossyScale(factor=2)])
    assert np.array_equal(model.graph.initializers["w2"].const_value.numpy(), 4 * before)


def test_bisect_runs_the_first_passes_only():
    lines = []
    report = optimize(mlp(), [Nothing(), Scale(factor=2)], hooks=Hooks(log=lines.append, bisect=1))
    assert len(report) == 1
    assert lines == ["BISECT: running pass (1) nothing", "BISECT: NOT running pass (2) scale"]


def test_print_after_sees_each_pass_and_its_model():
    seen = []
    hooks = Hooks(after=lambda step, model: seen.append((step.name, isinstance(model, ir.Model))))
    optimize(mlp(), [Nothing(), Zero()], hooks=hooks)
    assert seen == [("nothing", True), ("zero", True)]


def test_objects_of_the_caller_are_spared_the_collector_while_passes_run():
    frozen = []
    hooks = Hooks(after=lambda step, model: frozen.append(gc.get_freeze_count()))
    optimize(mlp(), [Nothing()], hooks=hooks)
    assert frozen[0] > 0 == gc.get_freeze_count()


@pytest.mark.parametrize("name", ["x", "file", "a/b"])
def test_a_failure_can_be_seen_again(tmp_path, stubs, name):
    folder, model = tmp_path / "failed", mlp()
    model.graph.inputs[0].name = name
    with pytest.raises(PromiseBroken):
        optimize(model, [LossyScale(factor=2), Scale(factor=3)], seed=5, hooks=Hooks(keep_failed=folder))
    again = bevel.load(folder / "input.onnx")
    text = (folder / "pipeline.txt").read_text().strip()
    assert text == "scale{factor=3.0}"
    with pytest.raises(PromiseBroken) as error:
        optimize(again, text, calibration=folder, seed=5)
    assert str(error.value) in (folder / "error.txt").read_text()


def test_user_inputs_are_used_and_a_one_shot_iterator_is_enough():
    rng = np.random.default_rng(0)
    feeds = ({"x": rng.standard_normal((2, 6)).astype(np.float32)} for _ in range(3))
    report = optimize(mlp(), [Nothing(), Zero()], calibration=feeds)
    assert report.inputs == "3 inputs (an iterable)"


def test_no_inputs_prove_nothing():
    with pytest.raises(CalibrationError, match="no inputs to verify with"):
        optimize(mlp(), Nothing(), calibration=[])


def test_answers_that_change_from_run_to_run_are_not_verified():
    noisy = graph("noisy (float[2, 50] x) => (int32[2, 9] y) { y = Multinomial <sample_size = 9> (x) }")
    with pytest.raises(UnsupportedModel, match="other numbers in each run"):
        optimize(noisy, Nothing())
    assert len(optimize(noisy, Nothing(), verify=False)) == 1


def test_a_model_that_does_not_run_says_so_in_one_line():
    strange = graph("strange (float[2] x) => (float[2] y) { y = com.nobody.Foo (x) }")
    with pytest.raises(Exception, match="Foo") as error:
        optimize(strange, Nothing())
    assert "\n" not in error.value.what


def test_a_model_without_inputs_is_verified():
    fixed = graph("fixed () => (float[3] y) { y = Relu (w) }", {"w": (3,)})
    assert optimize(fixed, Nothing()).steps[0].verdict.outputs[0].exact


def test_latencies_are_measured_on_request():
    report = optimize(mlp(), Nothing(), measure_latency=True)
    assert report.deployment.latency_before > 0
    assert report.deployment.latency_after > 0
    assert report.deployment.drift < 1e-5
    assert math.isnan(optimize(mlp(), Nothing()).deployment.latency_before)
