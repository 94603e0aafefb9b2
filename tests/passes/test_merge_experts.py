import numpy as np
import pytest

import bevel
from bevel.passes.base import REASSOCIATION_RTOL
from bevel.passes.merge_experts import MergeExperts
from bevel.testing import check_pass
from tests.passes.mixture_graphs import EXPERTS, feeds, mixture, weights


def twins(spread=0.0):
    """Return experts of which the third is the first and the fourth the second, in other orders, with some noise."""
    arrays = weights()
    rng = np.random.default_rng(2)
    for name in ("first", "second", "third"):
        arrays[name][2:] = arrays[name][:2] + spread * rng.standard_normal(arrays[name][:2].shape)
    order = rng.permutation(arrays["third"].shape[1])
    for name in ("first", "second"):
        arrays[name][2] = arrays[name][2][:, order]
    arrays["third"][2] = arrays["third"][2][order]
    return arrays


def run(model, options=""):
    return bevel.optimize(model, f"merge-experts{options}", calibration=feeds()).steps[0]


@pytest.mark.parametrize("options", ["{similarity=weights}", "{align=activations weights=uniform}"])
def test_equal_experts_merge_into_the_same_function(options):
    model = mixture("operator", twins())
    step = run(model, options)
    assert step.error <= REASSOCIATION_RTOL
    assert [node.op_type for node in model.graph].count("If") == EXPERTS // 2
    assert any("merged: 0+2; 1+3" in note for note in step.notes)


def test_what_is_nearly_equal_costs_little():
    near, far = mixture("operator", twins(0.02)), mixture("operator", weights())
    assert 1e-4 < run(near).error < 0.1 * run(far).error


def test_without_order_a_mean_of_the_same_is_not_the_same():
    assert run(mixture("operator", twins()), "{align=none}").error > 0.05


def test_one_merged_expert_has_the_gates_of_all():
    arrays = weights(spread=0.0)
    model = mixture("operator", arrays)
    assert run(model, "{experts=1}").error <= REASSOCIATION_RTOL


def test_what_was_merged_can_be_merged_again_and_averaged():
    model = mixture("operator", weights(spread=0.0))
    for passes in ("merge-experts{ratio=0.25}", "merge-experts{experts=2}", "average-experts"):
        assert bevel.optimize(model, passes, calibration=feeds(2)).steps[0].error <= REASSOCIATION_RTOL
    assert "If" not in [node.op_type for node in model.graph]


def test_it_behaves():
    check_pass(MergeExperts(ratio=0.25), mixture("operator", weights()), feeds(2))
