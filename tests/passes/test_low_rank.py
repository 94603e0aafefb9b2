import numpy as np
import onnx
import onnx_ir
import pytest

import bevel
from bevel.errors import BudgetMissed, PromiseBroken, UsageError
from bevel.ir.cost import cost
from bevel.ir.provenance import Provenance, provenance, set_provenance
from bevel.passes.factoring.factors import best_factors, losses
from bevel.passes.factoring.ranks import choose, menu, most, ranks
from bevel.passes.fitting.layers import layers
from bevel.passes.low_rank import LowRank
from bevel.passes.pipeline import optimize
from bevel.testing import check_pass
from tests.graphs import graph, proto

CONVOLUTIONS = """
net (float[n, 24, 7, 7] x) => (float[n, c, h, w] y) {
  a = Conv <strides = [2, 1], dilations = [1, 2], pads = [1, 2, 1, 2]> (x, plain, bias)
  r = Relu (a)
  b = Conv <group = 2, kernel_shape = [3, 3], auto_pad = "SAME_UPPER"> (r, grouped)
  d = Conv <group = 32, pads = [1, 1, 1, 1]> (b, depthwise)
  y = ConvTranspose <strides = [2, 2]> (d, transposed, shift)
}
"""
KERNELS = {
    "plain": (32, 24, 3, 3),
    "bias": (32,),
    "grouped": (32, 16, 3, 3),
    "depthwise": (32, 1, 3, 3),
    "transposed": (32, 24, 2, 2),
    "shift": (24,),
}
DENSE = """
net (float[n, 40] x) => (float[n, 10] y) {
  t = Transpose <perm = [1, 0]> (w1)
  h = MatMul (x, t)
  a = Add (h, b1)
  r = Relu (a)
  g = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (r, w2, b2)
  y = MatMul (g, w3)
}
"""
MATRICES = {"w1": (48, 40), "b1": (48,), "w2": (40, 48), "b2": (40,), "w3": (40, 10)}


def thin(text, shapes, rank, but=()):
    """A network whose matrices have a low rank, all but some."""
    source = proto(text, shapes)
    rng = np.random.default_rng(1)
    for each in source.graph.initializer:
        array = onnx.numpy_helper.to_array(each).copy()
        if array.ndim < 2 or each.name in but:
            continue
        groups = 2 if each.name == "grouped" else 1
        inner = (array.shape[0], -1) if each.name == "transposed" else (groups, array.shape[0] // groups, -1)
        flat = array.reshape(inner)
        low = rng.standard_normal((*flat.shape[:-1], rank)) @ rng.standard_normal(
            (*flat.shape[:-2], rank, flat.shape[-1])
        )
        each.raw_data = (low / np.sqrt(rank * flat.shape[-1])).astype(np.float32).tobytes()
    return bevel.load(source)


def feeds(*shape, count=3, mixing=None):
    rng = np.random.default_rng(2)
    arrays = rng.standard_normal((count, 32, *shape))
    return [{"x": (array if mixing is None else array @ mixing).astype(np.float32)} for array in arrays]


@pytest.mark.parametrize("metric", ["weights", "inputs"])
def test_matrices_of_a_low_rank_lose_nothing(metric):
    model = thin(DENSE, MATRICES, 4)
    step = check_pass(LowRank(rank=4, metric=metric), model, feeds(40))
    assert step.error < 1e-5
    optimize(model, LowRank(rank=4, metric=metric), calibration=feeds(40))
    shapes = {name: tuple(value.shape) for name, value in model.graph.initializers.items()}
    assert (shapes["w1.down"], shapes["w1.up"]) == ((40, 4), (4, 48))
    assert not {"w1", "w2", "w3"} & shapes.keys()
    assert [node.op_type for node in model.graph].count("Transpose") == 0
    assert all(layer.node.outputs[0].shape is not None for layer in layers(model))


@pytest.mark.parametrize("metric", ["weights", "inputs"])
def test_convolutions_keep_their_kernel_in_one_of_both(metric):
    model = thin(CONVOLUTIONS, KERNELS, 4, but=["depthwise"])
    step = check_pass(LowRank(rank=4, metric=metric), model, feeds(24, 7, 7, count=1))
    assert step.error < 1e-5
    report = optimize(model, LowRank(rank=4, metric=metric), calibration=feeds(24, 7, 7, count=1))
    shapes = {name: tuple(value.shape) for name, value in model.graph.initializers.items()}
    assert shapes["plain.down"] == (4, 24, 3, 3) and shapes["plain.up"] == (32, 4, 1, 1)
    assert shapes["grouped.down"] == (8, 16, 3, 3) and shapes["grouped.up"] == (32, 4, 1, 1)
    assert shapes["transposed.down"] == (4, 32, 1, 1) and shapes["transposed.up"] == (4, 24, 2, 2)
    assert "depthwise" in shapes
    notes = report.steps[0].notes
    assert "3 of 4 layers factored" in notes[0] and "1 layers stay whole" in notes[1]
    assert report.after.parameters == report.before.parameters - sum(map(int, saved(notes[0])))


def saved(note):
    before, after = (part.split()[0].replace(",", "") for part in (note.split(": ")[1], note.split("became ")[1]))
    yield int(before) - int(after)


def test_a_rank_too_low_is_seen():
    with pytest.raises(PromiseBroken, match="low-rank"):
        optimize(thin(DENSE, MATRICES, 4), LowRank(rank=3), calibration=feeds(40), max_error=1e-3)


def test_the_metric_of_the_inputs_spares_what_they_contain():
    """A few directions carry nearly all of the input: what the weights do there counts."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.standard_normal((40, 40)))[0] * np.geomspace(10, 0.01, 40)[:, None]
    inputs = feeds(40, mixing=mixing)
    errors = {}
    for metric in ("weights", "inputs"):
        model = graph("net (float[n, 40] x) => (float[n, 48] y) { y = MatMul (x, w) }", {"w": (40, 48)})
        (step,) = optimize(model, LowRank(rank=8, metric=metric), calibration=inputs).steps
        errors[metric] = step.error
    assert errors["inputs"] < 0.5 * errors["weights"]


def test_the_bias_takes_over_the_mean():
    """An input that never changes: one that is constant costs no rank where there is a bias."""
    inputs = [{"x": np.tile(np.linspace(1, 2, 40, dtype=np.float32), (32, 1))}]
    text = "net (float[n, 40] x) => (float[n, 48] y) { h = MatMul (x, w)  y = Add (h, b) }"
    model = graph(text, {"w": (40, 48), "b": (48,)})
    (step,) = optimize(model, LowRank(rank=1, metric="inputs"), calibration=inputs).steps
    assert step.error < 1e-5
    (step,) = optimize(graph(text, {"w": (40, 48), "b": (48,)}), LowRank(rank=1), calibration=inputs).steps
    assert step.error > 0.1


def test_layers_are_factored_for_what_the_ones_before_them_left():
    """After w1 lost a direction, w2 reads nothing along it: a rank less is enough."""
    text = "net (float[n, 20] x) => (float[n, 24] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }"
    model = graph(text, {"w1": (20, 24), "w2": (24, 24)})
    report = optimize(model, LowRank(rank=5, metric="inputs"), calibration=feeds(20))
    first, second = report.steps[0].notes[1].removeprefix("relative error of a layer, worst first: ").split(", ")
    assert first.startswith("w1 0.") and second.startswith("w2 ")
    assert float(second.split()[1]) < 0.1 < float(first.split()[1])


@pytest.mark.parametrize("allocation", ["uniform", "slope", "milp"])
@pytest.mark.parametrize("target", ["macs=0.6x", "parameters=0.6x", "size=0.6x"])
def test_a_target_is_met(allocation, target):
    model = thin(DENSE, MATRICES, 12, but=["w2"])
    metric = {"macs": "macs", "parameters": "parameters", "size": "bytes"}[target.split("=")[0]]
    before = getattr(cost(model), metric)
    optimize(model, LowRank(target=target, allocation=allocation), calibration=feeds(40))
    assert 0.5 * before < getattr(cost(model), metric) <= 0.6 * before


def test_the_slope_takes_rank_from_those_that_need_it_least():
    errors = {}
    for allocation in ("uniform", "slope", "milp"):
        model = thin(DENSE, MATRICES, 6, but=["w2"])
        (step,) = optimize(model, LowRank(ratio=0.3, allocation=allocation), calibration=feeds(40)).steps
        errors[allocation] = step.error
    assert errors["slope"] < 0.6 * errors["uniform"]
    assert errors["milp"] < 0.6 * errors["uniform"]


def test_more_than_there_is_cannot_be_saved():
    with pytest.raises(BudgetMissed, match="at the lowest ranks"):
        check_pass(LowRank(target="parameters=0.01x"), graph(DENSE, MATRICES), feeds(40))


def test_convolutions_get_whole_blocks_of_channels():
    (plain, grouped, depthwise, _) = layers(graph(CONVOLUTIONS, KERNELS))
    assert ranks(plain, 8).tolist() == [1, 2, 4, 8, 16, 24]
    assert most(plain) == 27 and most(depthwise) == 0
    assert ranks(grouped, 16).tolist() == [1, 2, 4, 8]  # no multiple of 16 makes it smaller
    assert ranks(depthwise, 8).tolist() == []
    matrices = layers(graph(DENSE, MATRICES))
    assert ranks(matrices[0], 8).tolist() == list(range(1, most(matrices[0]) + 1))


def test_tied_weights_stay():
    text = "net (float[n, 20] x) => (float[n, 20] y) { h = MatMul (x, w)  g = MatMul (h, w)  y = MatMul (g, v) }"
    model = graph(text, {"w": (20, 20), "v": (20, 20)})
    (step,) = optimize(model, LowRank(rank=4), calibration=feeds(20)).steps
    assert {"w", "v.up"} < set(model.graph.initializers)
    assert any("w, used more than once" in note for note in step.notes)


def test_what_is_asked_for_is_factored_alone():
    model = graph(DENSE, MATRICES)
    optimize(model, "low-rank{rank=2 only=w* skip=w2}", calibration=feeds(40))
    assert {"w2", "w1.up", "w3.up"} < set(model.graph.initializers)


def test_options_that_contradict_each_other():
    with pytest.raises(UsageError, match="exclude each other"):
        LowRank(rank=3, ratio=0.5)
    with pytest.raises(UsageError, match="cannot be predicted"):
        LowRank(target="latency=0.5x")


def test_the_error_foretold_is_the_error_made():
    rng = np.random.default_rng(0)
    weights, rows = rng.standard_normal((2, 6, 9)), rng.standard_normal((2, 50, 9))
    second = rows.transpose(0, 2, 1) @ rows / 50
    factors = best_factors(weights, second)
    up, down = factors.of(3)
    change = weights - up @ down
    made = np.einsum("goi,gij,goj->", change, second, change)
    assert made == pytest.approx(factors.energies[3:].sum(), rel=0.05)  # the moment is damped
    other = best_factors(weights)
    worse = weights - other.up[:, :, :3] @ other.down[:, :3]
    assert made < np.einsum("goi,gij,goj->", worse, second, worse)


def test_choices_by_hand():
    (layer,) = layers(graph("m (float[n, 8] x) => (float[n, 8] y) { y = MatMul (x, w) }", {"w": (8, 8)}))
    each = menu(layer, np.array([8.0, 4, 2, 1, 0.5, 0, 0, 0]), "parameters", 8)
    assert each.widths.tolist() == [0, 3, 2, 1] and each.saved.tolist() == [0, 16, 32, 48]
    assert np.allclose(each.damage, [0, *losses(np.array([8.0, 4, 2, 1, 0.5]))[[3, 2, 1]]])
    for by in ("uniform", "slope", "milp"):
        assert choose([each, each], 64, by, "") == [2, 2]
        assert choose([each, each], 0, by, "") == [0, 0]
    flat = menu(layer, np.array([1.0, 0, 0, 0, 0, 0, 0, 0]), "parameters", 8)
    assert choose([each, flat], 48, "slope", "") == choose([each, flat], 48, "milp", "") == [0, 1]


def test_factors_have_no_names_of_a_module():
    model = graph(DENSE, MATRICES)
    set_provenance(model.graph.initializers["w2"], Provenance(("fc.weight",), True))
    set_provenance(model.graph.initializers["b2"], Provenance(("fc.bias",), True))
    optimize(model, LowRank(rank=4, metric="inputs"), calibration=feeds(40))
    named = {name for name, value in model.graph.initializers.items() if provenance(value)}
    assert named == {"b2"}


@pytest.mark.parametrize("options", ["ratio=0.3", "ratio=0.3 allocation=uniform", "rank=4", "ratio=0.3 metric=inputs"])
def test_weights_that_are_not_finite_stay_as_they_are(options):
    model = graph(DENSE, MATRICES)
    broken = model.graph.initializers["w3"]
    broken.const_value = onnx_ir.tensor(np.where(np.eye(40, 10), np.inf, 1.0).astype(np.float32))
    optimize(model, f"low-rank{{{options}}}", verify=False)
    assert {"w2", "w3"} & set(model.graph.initializers) == {"w3"}
