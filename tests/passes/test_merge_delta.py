from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import bevel
from bevel.cli import bevel as bevel_command
from bevel.errors import EditRefused, PromiseBroken, UsageError
from bevel.ir.lineage import Lineage, lineage, set_lineage
from bevel.ir.provenance import Provenance, set_provenance
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.deltas.delta import Tuned, best_q, bits, merged, seed_of
from bevel.passes.execution import Execution
from bevel.passes.merge_delta import MergeDelta
from bevel.testing import check_pass
from tests.graphs import MLP, MLP_WEIGHTS, graph, mlp, proto, snapshot

RNG = np.random.default_rng(0)
# One draw of 2000: a share kept with probability p has a deviation of sqrt(p q / 2000); four of them.
FOUR_SIGMA = 4


def weights(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def moved(model, share=0.05, seed=1):
    """The model with a small delta on every weight."""
    rng = np.random.default_rng(seed)
    copy = model.clone()
    for value in copy.graph.initializers.values():
        array = value.const_value.numpy()
        delta = share * rng.standard_normal(array.shape)
        value.const_value = ir.tensor((array + delta).astype(array.dtype), name=value.name)
    return copy


def context(model, feeds, seed=0):
    return Context(seed, Calibration.of(feeds, model), Execution())


def inputs(count=4, rows=32, seed=5):
    """Inputs with a mean of their own, as activations have."""
    rng = np.random.default_rng(seed)
    return [{"x": (1 + rng.standard_normal((rows, 6))).astype(np.float32)} for _ in range(count)]


def test_kept_entries_are_the_delta_over_q_and_dropped_ones_the_base():
    base, tuned = mlp(), moved(mlp())
    before, original = weights(tuned), weights(base)
    bevel.merge_delta(tuned, base, step=MergeDelta(drop=0.5))
    for name in ("w1", "w2"):
        change = (weights(tuned)[name] - original[name]) / (before[name] - original[name])
        dropped = np.isclose(change, 0, atol=1e-4)
        np.testing.assert_allclose(change[~dropped], 2, rtol=1e-3)
        assert 0 < dropped.sum() < dropped.size


def test_vectors_and_integers_stay_bit_for_bit():
    base, tuned = mlp(), moved(mlp())
    bias = weights(tuned)["b1"].tobytes()
    bevel.merge_delta(tuned, base)
    assert weights(tuned)["b1"].tobytes() == bias


def test_the_expectation_over_seeds_is_the_tuned_weight():
    base, tuned = RNG.standard_normal((5, 4)), RNG.standard_normal((5, 4))
    draws = [
        merged(ir.tensor(base), [Tuned(ir.tensor(tuned), 0.1, seed_of("w", seed))], 0.9, 1.0, ir.DataType.DOUBLE)
        for seed in range(2000)
    ]
    deviation = np.abs(tuned - base) * np.sqrt(0.9 / 0.1 / len(draws))
    assert np.all(np.abs(np.mean(draws, 0) - tuned) < FOUR_SIGMA * deviation)
    assert not np.all(np.abs(np.mean(draws, 0) - base) < FOUR_SIGMA * deviation)


def test_a_tensor_in_chunks_is_the_same(monkeypatch):
    base, tuned = ir.tensor(RNG.standard_normal((7, 3))), Tuned(ir.tensor(RNG.standard_normal((7, 3))), 0.3, (1, 2))
    whole = merged(base, [tuned], 0.6, 1.0, ir.DataType.FLOAT)
    monkeypatch.setattr("bevel.passes.deltas.delta.CHUNK", 6)
    assert merged(base, [tuned], 0.6, 1.0, ir.DataType.FLOAT).tobytes() == whole.tobytes()


def test_nothing_dropped_is_the_tuned_model():
    base, tuned = mlp(), moved(mlp())
    before = weights(tuned)
    bevel.merge_delta(tuned, base, step=MergeDelta(drop=0))
    for name, array in weights(tuned).items():
        assert array.tobytes() == before[name].tobytes()


def test_half_precision_is_rounded_once():
    base, tuned = RNG.standard_normal((4, 4)).astype(np.float16), RNG.standard_normal((4, 4)).astype(np.float16)
    result = merged(ir.tensor(base), [Tuned(ir.tensor(tuned), 1.0, (0,))], 0.0, 1.0, ir.DataType.FLOAT16)
    assert result.tobytes() == tuned.tobytes()


def test_several_models_add_their_deltas():
    base, first, second = mlp(), moved(mlp(), seed=1), moved(mlp(), seed=2)
    expected = {name: weights(first)[name] + weights(second)[name] - array for name, array in weights(base).items()}
    bevel.merge_delta(first, base, second, step=MergeDelta(drop=0))
    for name, array in weights(first).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)


def test_models_are_thinned_out_independently():
    base, first = mlp(), moved(mlp(), seed=1)
    twin, original = first.clone(), weights(base)["w1"]
    delta = weights(first)["w1"] - original
    bevel.merge_delta(first, base, twin, step=MergeDelta(drop=0.5))
    parts = np.round((weights(first)["w1"] - original) / delta).astype(int)
    assert set(np.unique(parts)) == {0, 2, 4}  # dropped by both, by one, by none


@pytest.mark.parametrize("drop", [0.3, 0.9])
def test_the_analytic_q_is_the_best_of_all_drawn_by_brute_force(drop):
    """Every draw of a small delta, exactly: 2^6 masks of a row, weighted by their probability."""
    rng = np.random.default_rng(3)
    delta, x = rng.standard_normal((2, 6)), 0.7 + rng.standard_normal((50, 6))
    second = x.T @ x / len(x)
    masks = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T
    chance = np.prod(np.where(masks, 1 - drop, drop), axis=1)

    def error(q):
        change = delta * (1 - masks[:, None] / q)
        return np.sum(chance * np.einsum("moi,ij,moj->m", change, second, change))

    together, apart = np.trace(delta @ second @ delta.T), np.sum(delta**2 * np.diag(second))
    best = best_q(together, apart, drop)
    tried = np.linspace(1 - drop, 1, 2001)
    assert best == pytest.approx(tried[np.argmin([error(q) for q in tried])], abs=2 * (tried[1] - tried[0]))
    assert error(best) < error(1 - drop)
    closed = (1 - (1 - drop) / best) ** 2 * together + drop * (1 - drop) / best**2 * apart
    assert closed == pytest.approx(error(best))


def test_in_a_deep_network_bias_weighs_more():
    alone, deep = best_q(1.0, 0.8, 0.9), best_q(1.0, 0.8, 0.9, layers=20)
    assert 0.1 < deep < alone
    assert deep - 0.1 == pytest.approx((alone - 0.1) / 20)


def test_analytic_is_measured_to_be_better_than_dare():
    base, feeds = mlp(), inputs()
    errors = {}
    for rescale in ("dare", "analytic", "label-free"):
        tuned = moved(base, 0.5)
        report = bevel.merge_delta(tuned, base, step=MergeDelta(drop=0.9, rescale=rescale), calibration=feeds)
        errors[rescale] = report.error
    assert errors["analytic"] < errors["dare"]
    assert errors["label-free"] < errors["dare"]


def test_label_free_says_what_each_q_gave():
    base = mlp()
    tuned = moved(base, 0.5)
    report = bevel.merge_delta(tuned, base, step=MergeDelta(rescale="label-free"), calibration=inputs())
    (note,) = (note for note in report.steps[0].notes if "output error by q" in note)
    chosen = float(note.split("q = ")[1].split(";")[0])
    tried = [part.split(" at ") for part in note.split("by q: ")[1].split(", ")]
    assert len(tried) >= 5
    assert {0.1, 1.0} <= {float(q) for _, q in tried}
    assert min(tried, key=lambda pair: float(pair[0]))[1] == f"{chosen:.3g}"


def test_analytic_leaves_tables_at_dares_q():
    text = """
    m (int64[n] i) => (float[n, 3] y) {
      e = Gather (table, i)
      y = MatMul (e, w)
    }
    """
    base = graph(text, {"table": (10, 6), "w": (6, 3)})
    tuned = moved(base)
    change = weights(tuned)["table"] - weights(base)["table"]
    report = bevel.merge_delta(tuned, base, step=MergeDelta(drop=0.5, rescale="analytic"))
    shares = (weights(tuned)["table"] - weights(base)["table"]) / change
    assert set(np.round(np.unique(np.round(shares, 2)))) == {0, 2}
    assert any("(w)" in note and "table" not in note for note in report.steps[0].notes)


def test_the_pass_behaves_and_gives_the_same_bytes_twice():
    tuned = moved(mlp())
    set_lineage(tuned, Lineage(mlp()))
    step = check_pass(MergeDelta(drop=0.5, rescale="analytic"), tuned, inputs())
    assert step.error > 0
    assert any("beside the base" in note for note in step.notes)


def test_another_seed_drops_others():
    results = []
    for seed in (0, 1, 0):
        tuned = moved(mlp())
        bevel.merge_delta(tuned, mlp(), seed=seed)
        results.append(snapshot(tuned))
    assert results[0] == results[2] != results[1]


def test_tensors_of_one_shape_are_thinned_out_differently():
    text = "m (float[n, 8] x) => (float[n, 8] y) { a = MatMul (x, w1) y = MatMul (a, w2) }"
    base = graph(text, {"w1": (8, 8), "w2": (8, 8)})
    tuned = moved(base)
    bevel.merge_delta(tuned, base, step=MergeDelta(drop=0.5))
    first, second = (weights(tuned)[name] != weights(base)[name] for name in ("w1", "w2"))
    assert not np.array_equal(first, second)


def test_lineage_is_used_up_and_a_pipeline_carries_it():
    tuned = moved(mlp())
    set_lineage(tuned, Lineage(mlp()))
    bevel.optimize(tuned, "simplify,merge-delta{drop=0.5}")
    assert lineage(tuned) is None


def test_a_model_without_a_base_is_refused():
    with pytest.raises(EditRefused, match="does not know what it was tuned from"):
        bevel.optimize(mlp(), "merge-delta")


@pytest.mark.parametrize(
    ("text", "shapes", "why"),
    [
        (MLP.replace("w1", "other"), {"other": (6, 8), "b1": (8,), "w2": (8, 3)}, "no initializer of that name"),
        (MLP, {"w1": (6, 8), "b1": (8,), "w2": (8, 1)}, r"its shape is \[8, 3\], but \[8, 1\]"),
        (MLP.replace("MatMul (r", "Gemm (r"), MLP_WEIGHTS, "other operators use it"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_before_anything_is_written(text, shapes, why):
    tuned = moved(mlp())
    before = snapshot(tuned)
    with pytest.raises(EditRefused, match=why):
        bevel.merge_delta(tuned, graph(text, shapes))
    assert snapshot(tuned) == before
    assert lineage(tuned) is None


def test_what_only_the_tuned_model_has_can_be_skipped():
    base = graph(MLP.replace("w2", "head"), {"w1": (6, 8), "b1": (8,), "head": (8, 3)})
    tuned = moved(mlp())
    head = weights(tuned)["w2"].tobytes()
    bevel.merge_delta(tuned, base, step=MergeDelta(skip=("w2",)))
    assert weights(tuned)["w2"].tobytes() == head


def test_parameters_are_matched_by_where_they_came_from():
    renamed = {"w1": (6, 8), "b1": (8,), "onnx_MatMul_7": (8, 3)}
    base, tuned = graph(MLP.replace("w2", "onnx_MatMul_7"), renamed), moved(mlp())
    source = Provenance(("head.weight",), True).then("transpose", (1, 0))
    set_provenance(base.graph.initializers["onnx_MatMul_7"], source)
    set_provenance(tuned.graph.initializers["w2"], source)
    bevel.merge_delta(tuned, base, step=MergeDelta(drop=0.5))
    share = np.isclose(weights(tuned)["w2"], weights(base)["onnx_MatMul_7"], atol=1e-6).mean()
    assert 0.2 < share < 0.8


def test_an_error_above_the_limit_leaves_the_model_alone():
    tuned = moved(mlp(), 1.0)
    before = snapshot(tuned)
    with pytest.raises(PromiseBroken):
        bevel.merge_delta(tuned, mlp(), max_error=1e-6)
    assert snapshot(tuned) == before


def test_base_and_siblings_do_not_change():
    base, tuned, sibling = mlp(), moved(mlp(), seed=1), moved(mlp(), seed=2)
    before = snapshot(base), snapshot(sibling)
    bevel.merge_delta(tuned, base, sibling)
    assert (snapshot(base), snapshot(sibling)) == before


def test_weights_are_read_no_sooner_than_the_model():
    base, tuned = mlp(), moved(mlp())
    read = []

    def spied(array):
        return ir.LazyTensor(
            lambda: read.append(1) or ir.tensor(array), dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape)
        )

    for value in tuned.graph.initializers.values():
        value.const_value = spied(value.const_value.numpy())
    set_lineage(tuned, Lineage(base))
    MergeDelta().run(tuned, context(tuned, inputs()))
    assert not read
    weights(tuned)
    assert read


def test_the_room_a_thinned_delta_takes():
    assert bits(0.0, 32) == 32
    assert bits(0.99, 32) < 0.5
    assert bits(0.5, 16) == float(Fraction(9))


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(proto(MLP, MLP_WEIGHTS), "base.onnx")
    bevel.save(moved(mlp(), seed=1), "a.onnx")
    bevel.save(moved(mlp(), seed=2), "b.onnx")
    arguments = ["merge-delta", "a.onnx", "b.onnx", "--base", "base.onnx", "-o", "out.onnx", "--drop", "0.5"]
    done = CliRunner().invoke(bevel_command, arguments)
    assert done.exit_code == 0, done.output
    assert "merge-delta{drop=0.5}" in done.stdout
    onnx.checker.check_model("out.onnx")
    merged_model, base = bevel.load("out.onnx"), mlp()
    assert not np.array_equal(weights(merged_model)["w1"], weights(base)["w1"])


def test_the_command_refuses_a_misspelt_way_of_rescaling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(proto(MLP, MLP_WEIGHTS), "m.onnx")
    arguments = ["merge-delta", "m.onnx", "--base", "m.onnx", "-o", "out.onnx", "--rescale", "darex"]
    done = CliRunner().invoke(bevel_command, arguments)
    assert done.exit_code == UsageError.exit_code
    assert "did you mean 'dare'" in done.stderr
