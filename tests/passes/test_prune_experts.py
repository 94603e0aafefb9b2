import numpy as np
import pytest

import bevel
from bevel.passes.base import REASSOCIATION_RTOL
from bevel.passes.prune_experts import PruneExperts
from bevel.testing import check_pass
from tests.passes.mixture_graphs import ALL, END, ROUTER, arranged, feeds, mixture, of_text, weights


def positive(count=4):
    """Return inputs that are all positive, for which the sign of a router's column decides."""
    return [{"x": np.abs(feed["x"])} for feed in feeds(count)]


def run(model, options="", inputs=None):
    return bevel.optimize(model, f"prune-experts{options}", calibration=inputs or feeds()).steps[0]


@pytest.mark.parametrize("by", ["frequency", "outputs"])
def test_an_expert_that_no_row_takes_goes_without_a_trace(by):
    arrays = weights()
    arrays["router"][:, 2] = -50
    model = mixture("operator", arrays)
    step = run(model, f"{{by={by}}}", positive())
    assert step.error <= REASSOCIATION_RTOL
    assert any("without 2, on which 0.0% of the choices fell" in note for note in step.notes)
    assert [node.op_type for node in model.graph].count("If") == 3


def test_a_softmax_over_all_experts_stays_one():
    arrays = weights()
    arrays["router"][:, 2] = 0  # never among the two best of positive inputs, but part of the sum
    arrays["router"][:, [0, 1]] = np.abs(arrays["router"][:, [0, 1]])
    arrays["router"][:, 3] = -1
    text = ROUTER.replace("g = Div (v, t)", "g = Identity (v)") + ALL + END
    model = of_text(text, arranged(arrays))
    assert run(model, "{experts=2}", positive()).error <= REASSOCIATION_RTOL


def test_fewer_experts_than_were_active():
    model = mixture("operator", weights())
    step = run(model, "{experts=1}")
    assert step.error > 0.1
    assert [node.op_type for node in model.graph].count("If") == 1


def test_the_least_used_go_first():
    arrays = weights()
    arrays["router"][:, 1] -= 1.0
    first, second = (run(mixture("operator", arrays), f"{{experts={n}}}", positive()) for n in (3, 2))
    assert first.error < second.error


def test_it_behaves():
    check_pass(PruneExperts(by="outputs"), mixture("operator", weights()), feeds(2))
