"""Rules of operators that no conformance test covers: executed, with a lie beside them that is caught."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from bevel.backends.onnxruntime import Session
from bevel.equivariance import check_rule
from bevel.errors import EditRefused
from bevel.ir import coupling
from bevel.ir.coupling import Coupling
from bevel.ir.edit import mask, select
from bevel.ir.groups import analyse, groups
from bevel.ir.site import Site
from tests.ir import attention_cases, contrib_cases
from tests.ir.attention_cases import RECURRENT
from tests.ir.contrib_cases import PACKED, Case, floats, whole

CASES = (
    *contrib_cases.ACTIVATIONS,
    *contrib_cases.NORMALISATIONS,
    *contrib_cases.PRODUCTS,
    *contrib_cases.PACKED,
    *contrib_cases.LINEAR_QUANTIZED,
    *attention_cases.PROJECTED,
    *attention_cases.HEADS,
    *attention_cases.SHARED,
    *attention_cases.ROTARY,
    *attention_cases.EXPERTS,
    *attention_cases.RECURRENT,
    *attention_cases.IMAGES,
)
BY_NAME = {case.name: case for case in CASES}

ROUNDING = 1e-5
"""Relative to the largest output: float32 sums of some dozen products, in another order."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_rule_lets_free_is_free(case: Case) -> None:
    checked = check_rule(case.model, case.feed)
    assert checked.disagreements == ()
    assert (checked.permuted, checked.selected) == (case.permuted, case.selected)


def named(case: Case, member: str) -> str:
    """Return the name of the group that holds a place of an axis."""
    return next(group.name for group in groups(case.model) if member in map(str, group.members))


def drop(case: Case, member: str, keep: list[int]) -> ir.Model:
    """Drop entries of a group, and compare with the model whose consumers of them are zeroed."""
    model, reference, name = case.model, case.model, named(case, member)
    select(model, {name: np.array(keep)})
    mask(reference, {name: np.array(keep)})
    with Session(model) as small, Session(reference) as full:
        for got, expected in zip(small.run(case.feed).values(), full.run(case.feed).values(), strict=True):
            np.testing.assert_allclose(got, expected, atol=ROUNDING * np.abs(expected).max())
    return model


def attributes(model: ir.Model, op_type: str) -> dict[str, object]:
    (node,) = [node for node in model.graph if node.op_type == op_type]
    return {name: attribute.value for name, attribute in node.attributes.items()}


def test_dropping_heads_restates_their_counts() -> None:
    model = drop(BY_NAME["Attention-onnx"], "wq[1.0]", [1])
    assert {"q_num_heads": 2, "kv_num_heads": 1}.items() <= attributes(model, "Attention").items()


def test_dropping_entries_of_queries_and_keys_writes_the_scale_down() -> None:
    model = drop(BY_NAME["MultiHeadAttention-projected"], "wq[1.1]", [0, 2, 3])
    assert attributes(model, "MultiHeadAttention")["scale"] == 0.5
    assert model.graph.initializers["b"].const_value.shape == [2 * 3 + 2 * 3 + 12]


def test_dropping_entries_of_values_restates_hidden_sizes() -> None:
    case = Case(
        "projected",
        "o = ms.Attention <num_heads = 2> (x, w, b) y = MatMul(o, v)",
        {"x": floats(2, 3, 6)},
        {"w": floats(6, 24), "b": floats(24), "v": floats(8, 5)},
        0,
        0,
    )
    model = drop(case, "v[0.1]", [0, 3])
    assert attributes(model, "Attention")["qkv_hidden_sizes"] == (8, 8, 4)


SHARED_HEADS = Case(
    "shared",
    "q = MatMul(x, w) "
    "o, p, r = ms.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1> (q, , , , , l, t, c, s) "
    "y = MatMul(o, v)",
    {"x": floats(2, 3, 6), "l": whole(2, 2, dtype=np.int32)},
    {
        "w": floats(6, 256),
        "c": floats(10, 16),
        "s": floats(10, 16, seed=1),
        "t": whole(3, dtype=np.int32),
        "v": floats(128, 5),
    },
    0,
    0,
)


def test_pairs_of_shared_heads_are_dropped_together() -> None:
    model = drop(SHARED_HEADS, "c[1]", list(range(0, 16, 2)))
    assert model.graph.initializers["w"].const_value.shape == [6, 128]


def test_widths_that_the_operator_does_not_take_are_refused() -> None:
    model = SHARED_HEADS.model
    with pytest.raises(EditRefused, match="no multiple of 16"):
        select(model, {named(SHARED_HEADS, "c[1]"): np.arange(12)})
    assert model.graph.initializers["w"].const_value.shape == [6, 256]


@pytest.mark.parametrize("case", RECURRENT[:7], ids=str)
def test_hidden_entries_are_dropped_from_every_gate(case: Case) -> None:
    text = f"{case.text} z = MatMul(y, v)"
    followed = replace(case, text=text, weights={**case.weights, "v": floats(5, 2)}, outputs=("z",))
    model = drop(followed, "v[0]", [0, 2, 3])
    assert attributes(model, case.name.split("-")[0])["hidden_size"] == 3


def test_rows_of_a_packed_weight_are_counted() -> None:
    case = Case(
        "mlp",
        "h = ms.MatMulNBits <K = 32, N = 48, bits = 4, block_size = 16> (x, w, s) a = Relu(h) y = MatMul(a, v)",
        {"x": floats(2, 32)},
        {"w": contrib_cases.octets(48, 2, 8), "s": floats(48, 2), "v": floats(48, 5)},
        0,
        0,
    )
    assert attributes(drop(case, "v[0]", list(range(32))), "MatMulNBits")["N"] == 32


LIES = (
    ("BiasGelu", "b s c, d -> b s c"),  # the bias is forgotten
    ("SkipLayerNormalization", "b s c, b s c, c, c, c -> b s c, b s 1, b s 1, b s c"),  # so are the statistics
    ("RotaryEmbedding", "b s (h d), b s, m c, m c -> b s (h d)"),  # and the pairs
    ("Attention", "b s i, i (q + q + q), (q + q + q) -> b s q"),  # and the heads
    ("MultiHeadAttention", "b s (h d), b t (h e), b t (h f), (h d + h e + h f) -> b s (h f)"),  # and the products
    ("MatMulNBits", "b s k, n k p, n k -> b s n"),  # and what lies in a byte
)


@pytest.mark.parametrize(("name", "equation"), LIES, ids=[name for name, _ in LIES])
def test_a_rule_that_lies_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, equation: str) -> None:
    def rule(site: Site) -> Coupling:
        return Coupling(equation, sizes={"h": 2})

    monkeypatch.setitem(coupling._RULES, ("com.microsoft", name), rule)
    assert check_rule(BY_NAME[name].model, BY_NAME[name].feed).disagreements


def test_packed_zero_points_keep_blocks_in_place() -> None:
    free, packed = analyse(PACKED[0].model, interface=False), analyse(PACKED[1].model, interface=False)
    assert [free["w[1]"].allows("permute"), packed["w[1]"].allows("permute")] == [True, False]
    assert packed["w[1]"].why("permute") == ("MatMulNBits '': its entries are packed into bytes",)


def test_weights_in_the_blocks_of_one_processor_stay_and_the_group_says_what_to_do() -> None:
    model = ir.from_onnx_text("""
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft.nchwc" : 1]>
    g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 2, 1, 1] w = {1, 2, 3, 4}> {
      y = com.microsoft.nchwc.Conv (x, w)
    }""")
    weights = [group for group in groups(model) if group.name.startswith("w")]
    assert weights and all("start from the model" in str(group) for group in weights)
