"""How much a moment is damped: little where rows are many, and about as much as serves best where they are few."""

import numpy as np
import pytest

import bevel
from bevel.passes.experts.trial import pruning
from bevel.passes.fitting.damping import PLENTY, SHARES, damping
from bevel.passes.fitting.second_order import DAMPING, Damped
from tests.graphs import graph
from tests.passes.test_convert_moe import found
from tests.passes.test_quantize_blocks import run

WIDTH = 24


def drawn(rows, seed=0):
    """Rows of inputs that go together somewhat, and their true second moment."""
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((WIDTH, WIDTH)) * np.linspace(0.1, 1, WIDTH)[:, None] + np.eye(WIDTH)
    centre = np.linspace(-2, 3, WIDTH)
    x = np.random.default_rng(seed).standard_normal((rows, WIDTH)) @ mixing + centre
    return x, mixing.T @ mixing + np.outer(centre, centre)


def unexplained(second, truth, share):
    """What the inputs before it leave of each, by one moment, judged by another."""
    lower = Damped(second, share).root
    inside = np.linalg.solve(lower, np.linalg.solve(lower, truth).T)
    return float((np.diag(lower) ** 2 * np.diag(inside)).sum())


@pytest.mark.parametrize("rows", [12, 30, 100, 400])
@pytest.mark.parametrize("seed", range(3))
def test_the_share_serves_nearly_as_well_as_the_best(rows, seed):
    x, truth = drawn(rows, seed)
    second = x.T @ x / rows
    left = {share: unexplained(second, truth, share) for share in SHARES}
    found = damping(second, rows)
    assert left[found] < 1.15 * min(left.values())
    if rows == 12:
        assert found > DAMPING
        assert left[DAMPING] > 1.2 * min(left.values())  # negative control


def test_many_rows_are_believed():
    x, _ = drawn(PLENTY * WIDTH)
    assert damping(x.T @ x / len(x), len(x)) == DAMPING
    assert damping(x.T @ x / len(x), len(x) // 2) == DAMPING


def test_fewer_rows_than_inputs_say_nothing_for_certain():
    x, _ = drawn(5)
    assert damping(x.T @ x / len(x), len(x)) > DAMPING
    assert damping(np.zeros((3, 3)), 1) in SHARES


def test_gptq_of_few_rows_serves_others_as_well(monkeypatch):
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((10, 40))

    def inputs(rows):
        x = rng.standard_normal((rows, 10)) @ mixing + 2 * rng.standard_normal((rows, 40))
        return {"x": x.astype(np.float32)}

    few, others = inputs(24), inputs(2000)
    text, shapes = "wide (float[n, 40] x) => (float[n, 30] y) { y = MatMul (x, w) }", {"w": (40, 30)}
    wanted = run(graph(text, shapes), others)

    def error(rounding):
        model = graph(text, shapes)
        bevel.optimize(
            model, f"quantize-blocks{{format=uint3 block=20 rounding={rounding} emit=portable}}", calibration=[few]
        )
        return np.linalg.norm(run(model, others) - wanted)

    assert error("gptq") < error("clip")
    monkeypatch.setattr("bevel.passes.quantization.feedback.damping", lambda moment, rows: DAMPING)
    assert error("gptq") > error("clip")  # negative control: with the usual damping it does harm


ALONE = "wide (float[n, 40] x) => (float[n, 30] y) { y = MatMul (x, w) }", {"w": (40, 30)}
MLP = """
mlp (float[n, 40] x) => (float[n, 30] y) {
  h = MatMul (x, first)
  r = Relu (h)
  y = MatMul (r, second)
}
"""
HIDDEN = MLP, {"first": (40, 60), "second": (60, 30)}


def test_a_refit_of_few_rows_serves_others_as_well(monkeypatch):
    rng = np.random.default_rng(4)
    few, others = ({"x": rng.standard_normal((rows, 40)).astype(np.float32)} for rows in (40, 2000))
    wanted = run(graph(*HIDDEN), others)

    def error(options):
        model = graph(*HIDDEN)
        bevel.optimize(model, f"prune-channels{{ratio=0.3 {options}}}", calibration=[few])
        return np.linalg.norm(run(model, others) - wanted)

    assert error("refit=true") < error("")
    monkeypatch.setattr("bevel.passes.fitting.refit.damping", lambda moment, rows: DAMPING)
    assert error("refit=true") > 1.2 * error("")  # negative control


@pytest.mark.parametrize(
    ("net", "passes", "where", "gain"),
    [
        (ALONE, "prune-weights{sparsity=0.5 method=obs}", "fitting.moments", 1.5),
        (ALONE, "prune-tiles{sparsity=0.4 method=obs refit=true tile=8x1}", "fitting.moments", 1.2),
        (ALONE, "low-rank{ratio=0.3 metric=inputs}", "factoring.factors", 1.04),
        (HIDDEN, "nest{widths=0.5 importance=magnitude},extract-member{width=0.5}", "fitting.moments", 1.3),
    ],
)
def test_passes_that_make_up_for_what_is_gone_believe_few_rows_only_so_far(monkeypatch, net, passes, where, gain):
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((10, 40))
    few, others = (
        {"x": (rng.standard_normal((rows, 10)) @ mixing + 2 * rng.standard_normal((rows, 40))).astype(np.float32)}
        for rows in (24, 2000)
    )
    wanted = run(graph(*net), others)

    def error():
        model = graph(*net)
        bevel.optimize(model, passes, calibration=[few])
        return np.linalg.norm(run(model, others) - wanted)

    held_back = error()
    monkeypatch.setattr(f"bevel.passes.{where}.damping", lambda moment, rows: DAMPING)
    assert error() > gain * held_back


def test_experts_are_fitted_to_few_rows_only_so_far(monkeypatch):
    rows = np.random.default_rng(4).standard_normal((80, 40)).astype(np.float32)
    evidence = found(graph(*HIDDEN), [{"x": rows}])

    def error():
        return pruning(evidence, 40, refit=True)[2]

    held_back = error()
    monkeypatch.setattr("bevel.passes.experts.trial.damping", lambda moment, rows: DAMPING)
    assert error() > 1.15 * held_back
