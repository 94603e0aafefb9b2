from dataclasses import replace

import numpy as np
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.errors import EditRefused, PromiseBroken, UsageError
from bevel.passes import average_experts
from bevel.passes.average_experts import AverageExperts
from bevel.passes.base import REASSOCIATION_RTOL
from bevel.testing import check_pass
from tests.graphs import graph
from tests.passes.mixture_graphs import EXPERTS, HIDDEN, content, feeds, mixture, weights

FFN = "m (float[b, n, 32] x) => (float[b, n, 32] y) { h = MatMul (x, up) r = Relu (h) y = MatMul (r, down) }"


def copies(*, shuffled=False):
    """Return experts that are the same, each with its entries in an order of its own if asked."""
    arrays = weights(spread=0.0)
    rng = np.random.default_rng(1)
    for expert in range(EXPERTS if shuffled else 0):
        order = rng.permutation(HIDDEN)
        arrays["first"][expert] = arrays["first"][expert][:, order]
        arrays["second"][expert] = arrays["second"][expert][:, order]
        arrays["third"][expert] = arrays["third"][expert][order]
    return arrays


def parts(options):
    """Return a dense layer, the same divided into experts, and inputs."""
    model = graph(FFN, {"up": (32, 64), "down": (64, 32)})
    rng = np.random.default_rng(0)
    inputs = [{"x": rng.standard_normal((2, 16, 32)).astype(np.float32)} for _ in range(4)]
    divided = model.clone()
    bevel.optimize(divided, f"convert-moe{{refit=false {options}}}", calibration=inputs)
    return model, divided, inputs


def run(model, options="", inputs=None):
    return bevel.optimize(model, f"average-experts{options}", calibration=inputs or feeds()).steps[0]


@pytest.mark.parametrize("form", ["gathered", "operator"])
def test_copies_are_averaged_exactly(form):
    model = mixture(form, copies())
    step = run(model)
    assert step.error <= REASSOCIATION_RTOL
    assert [shape for shape in content(model) if len(shape) > 1] == [(8, HIDDEN), (8, HIDDEN), (HIDDEN, 8)]
    assert any("the same function" in note for note in step.notes)


@pytest.mark.parametrize("align", ["weights", "activations"])
def test_copies_in_other_orders_are_put_in_order_first(align):
    model = mixture("operator", copies(shuffled=True))
    plain = model.clone()
    assert run(model, f"{{align={align}}}").error <= REASSOCIATION_RTOL
    assert run(plain, "{align=none}").error > 0.1


def test_the_mean_is_weighed_as_asked():
    arrays = weights(spread=0.3)
    model = mixture("operator", arrays)
    run(model, "{shares=3,0,0,1 align=none}")
    down = next(value for value in model.graph.initializers.values() if value.shape == (HIDDEN, 8))
    wanted = 0.75 * arrays["third"][0] + 0.25 * arrays["third"][3]
    np.testing.assert_allclose(down.const_value.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_experts_that_all_run_are_joined_exactly():
    dense, model, inputs = parts("experts=4 active=4 shared=1")
    step = run(model, inputs=inputs)
    assert step.error <= REASSOCIATION_RTOL
    with Session(dense) as before, Session(model) as after:
        for feed in inputs:
            np.testing.assert_allclose(after.run(feed)["y"], before.run(feed)["y"], rtol=1e-4, atol=1e-4)
    assert not {"If", "TopK"} & {node.op_type for node in model.graph}


def test_joined_parts_are_the_layer_that_they_came_of():
    dense, model, inputs = parts("experts=4 active=2 shared=0 gates=share")
    run(model, inputs=inputs)
    with Session(dense) as before, Session(model) as after:
        np.testing.assert_allclose(after.run(inputs[0])["y"], before.run(inputs[0])["y"], rtol=1e-4, atol=1e-3)


def test_a_mean_of_parts_is_refused():
    _, model, inputs = parts("experts=4 active=2 shared=0")
    with pytest.raises(EditRefused, match="parts of one layer"):
        run(model, "{how=mean}", inputs)


def test_the_sum_of_alternatives_is_refused():
    with pytest.raises(EditRefused, match="alternatives"):
        run(mixture("operator", weights()), "{how=join}")


def test_a_factor_of_the_gates_does_not_make_parts_of_alternatives():
    text = """m (float[n, 8] x) => (float[n, 8] y) <float factor = {2.5}> {
      l = MatMul (x, router)
      t = com.microsoft.MoE <k = 2, activation_type = "relu", normalize_routing_weights = 1> (x, l, a, , b)
      y = Mul (t, factor)
    }"""
    model = graph(text, {"router": (8, 3), "a": (3, 12, 8), "b": (3, 8, 12)})
    step = run(model, inputs=[{"x": np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)}])
    assert any("mean of 3 experts" in note for note in step.notes)
    assert (8, 12) in content(model)


def test_one_expert_a_row_says_neither():
    _, model, inputs = parts("experts=4 active=1 shared=0")
    with pytest.raises(EditRefused, match="neither"):
        run(model, inputs=inputs)


def test_shares_have_to_be_one_number_for_each():
    with pytest.raises(UsageError, match="3 shares"):
        run(mixture("operator", weights()), "{shares=1,1,1}")
    with pytest.raises(UsageError, match="no numbers"):
        AverageExperts(shares=("a",))


def test_where_there_is_none_it_says_so():
    with pytest.raises(EditRefused, match="no mixture"):
        run(graph(FFN, {"up": (32, 64), "down": (64, 32)}), inputs=parts("experts=2 active=2 shared=0")[2])


def test_wrong_nodes_are_caught(monkeypatch):
    write = average_experts.Change.write
    monkeypatch.setattr(
        average_experts.Change,
        "write",
        lambda self, *given: write(replace(self, experts=(self.experts[0].scaled(1.1),)), *given),
    )
    model = mixture("operator", copies())
    with pytest.raises(PromiseBroken, match="away from what it should give"):
        run(model)


def test_it_behaves():
    check_pass(AverageExperts(weights="frequency"), mixture("operator", weights()), feeds(2))
