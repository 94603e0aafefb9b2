"""The torch functions against data nobody here wrote: every node test of the onnx package."""

import pytest
import torch

from bevel.backends.torch import table
from tests.zoo.conformance import node_cases
from tests.zoo.conversion import attempt, ours

CHUNKS = 8
# Operators, or forms of one, that have no torch function; each is refused by name.
REFUSED = (
    "test_flexattention_",  # those whose scores a subgraph changes
    "test_image_decoder_",
    "test_scan_sum",  # Scan of operator set 8, with a batch axis
)
# Numbers as good as the expected ones, but rounded at other places: half precision, and the noise of numpy's FFT.
ROUNDED = ("test_attention_", "test_dft_inverse")
RANDOM = ("test_bernoulli",)
EXPECTED = {"right": ("test_",), "refused": REFUSED, "rounded": ROUNDED, "random": RANDOM}


@pytest.fixture(scope="module")
def cases():
    return list(node_cases())


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_node_tests_are_right_or_refused_by_name(cases, chunk):
    found = {case.name: attempt(ours, case) for case in cases[chunk::CHUNKS]}
    surprises = {
        name: (state, reason) for name, (state, reason) in found.items() if not name.startswith(EXPECTED.get(state, ()))
    }
    assert not surprises
    rights = sum(state == "right" for state, _ in found.values())
    assert rights >= 0.97 * len(found)


def test_a_wrong_function_is_seen(cases, monkeypatch):
    case = next(case for case in cases if case.name == "test_leakyrelu")
    assert attempt(ours, case)[0] == "right"
    monkeypatch.setitem(table._TABLE, ("", "LeakyRelu"), [table.Lowering(forgets_its_slope)])
    assert attempt(ours, case)[0] == "wrong"


def forgets_its_slope(x: torch.Tensor, *, alpha: float = 0.01) -> torch.Tensor:
    return torch.nn.functional.leaky_relu(x)
