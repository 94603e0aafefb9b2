"""Scales, rotations and linear maps of attention that is one node: queries against keys, values to what follows."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from bevel.ir import coupling, strands
from bevel.ir.action import Action, Inner, Packed, Term
from bevel.ir.axes import fresh
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Group, analyse
from bevel.ir.joint import joint, scale_within
from bevel.ir.rules import fused_attention
from bevel.ir.rules.attention import alone, attending
from bevel.ir.transform import move
from bevel.ir.within import host
from bevel.passes.base import REASSOCIATION_RTOL
from bevel.transport import check_motions
from tests.ir.contrib_cases import Case, floats, whole
from tests.ir.test_contrib_rules import BY_NAME
from tests.ir.test_transform import KINDS, difference, moves

# Two heads of keys and values, each for two heads of queries.
_PROJECT = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
_X = {"x": floats(2, 3, 8)}
_SHARED = {"wq": floats(8, 64), "wk": floats(8, 32), "wv": floats(8, 32, seed=1), "wo": floats(64, 5)}
_LENGTHS = {"l": whole(2, 2, dtype=np.int32), "t": whole(3, dtype=np.int32)}
_ANGLES = {"c": np.cos(floats(10, 8)), "s": np.sin(floats(10, 8))}
GROUPED = "num_heads = 4, kv_num_heads = 2"


def case(name: str, attention: str, weights: dict, opset: int = 23, outputs: tuple[str, ...] = ("y",)) -> Case:
    return Case(name, f"{attention} y = MatMul(o, wo)", _X, weights, 0, 0, outputs, opset)


STANDARD = case(
    "Attention",
    f"{_PROJECT} o = Attention <q_num_heads = 4, kv_num_heads = 2, softcap = 4.0> (q, k, v)",
    {**_SHARED, "wv": floats(8, 12), "wo": floats(24, 5)},
)
MULTIPLE = case(
    "MultiHeadAttention",
    f"{_PROJECT} o = ms.MultiHeadAttention <num_heads = 2> (q, k, v, b)",
    {"wq": floats(8, 12), "wk": floats(8, 12, seed=1), "wv": floats(8, 10), "b": floats(34), "wo": floats(10, 5)},
)
SHARED = case(
    "GroupQueryAttention",
    f"{_PROJECT} o = ms.GroupQueryAttention <{GROUPED}> (q, k, v, , , l, t)",
    {**_SHARED, **_LENGTHS},
)
TURNED = case(
    "GroupQueryAttention-rotary",
    f"p = MatMul(x, w) o = ms.GroupQueryAttention <{GROUPED}, do_rotary = 1> (p, , , , , l, t, c, s)",
    {"w": floats(8, 128), "wo": floats(64, 5), **_LENGTHS, **_ANGLES},
)
PROJECTED = case(
    "Attention-projected",
    "o = ms.Attention <num_heads = 2, qkv_hidden_sizes = [12, 12, 10]> (x, w, b)",
    {"w": floats(8, 34), "b": floats(34), "wo": floats(10, 5)},
)
Q, K, V = alone(0), alone(1), alone(2)
VALUES = Action(V, outputs=1)
IN_ONE = (Packed(0, (64, 32, 32), (0, 1, 2)),)
CASES = (STANDARD, MULTIPLE, SHARED, TURNED, PROJECTED)


def loaded(of: Case) -> ir.Model:
    return bevel.load(ir.to_proto(of.model))


def group(of: Case, member: str) -> Group:
    return next(each for each in analyse(loaded(of)).groups if member in map(str, each.members))


def exponents(of: Case, member: str, kind: str = "scale") -> list[str]:
    return [str(motion) for motion in group(of, member).motions(kind)]


def output(model: ir.Model) -> np.ndarray:
    with Session(model, level=Level.AS_WRITTEN, threads=1) as session:
        return session.run(_X)["y"]


# What they allow


def test_query_heads_follow_their_key_head() -> None:
    assert exponents(STANDARD, "wq[1.2]", "linear") == ["wq[1.2]: +1, wk[1.1]: -1"]
    assert exponents(STANDARD, "wq[1.0]") == ["wq[1.0]: +1, wk[1.0]: -1", "wv[1.0]: +1, wo[0.0]: -1"]
    assert exponents(STANDARD, "wq[1.1]") == []
    assert exponents(STANDARD, "wv[1.1]", "linear") == ["wv[1.1]: +1, wo[0.2]: -1"]


def test_biases_follow_their_weights_inside_a_fused_projection() -> None:
    assert exponents(PROJECTED, "w[1.0.1]", "linear") == ["w[1.0.1]: +1, b[0.0.1]: +1, w[1.1.1]: -1, b[0.1.1]: -1"]
    assert exponents(PROJECTED, "wo[0.1]", "linear") == ["w[1.2.1]: +1, b[0.2.1]: +1, wo[0.1]: -1"]
    assert exponents(MULTIPLE, "wq[1.1]", "linear") == ["wq[1.1]: +1, wk[1.1]: -1, b[0.0.1]: +1, b[0.1.1]: -1"]


def test_keys_and_values_of_one_width_move_each_by_itself() -> None:
    assert exponents(SHARED, "wq[1.2]", "linear") == ["wq[1.2]: +1, wk[1.1]: -1", "wv[1.1]: +1, wo[0.2]: -1"]


def test_pairs_that_turn_inside_scale_but_do_not_mix() -> None:
    found = group(TURNED, "c[1]")
    assert str(found.motions("scale")[0]) == "w[1.0.2.0]: +1, w[1.0.2.1]: +1, w[1.1.1.0]: -1, w[1.1.1.1]: -1"
    assert not found.allows("rotate")


def test_keys_that_leave_the_graph_stay() -> None:
    text = STANDARD.text.replace("o = Attention", "o, p, r = Attention")
    cached = replace(STANDARD, text=text, outputs=("y", "p"))
    assert exponents(cached, "wq[1.2]") == [] and exponents(cached, "wv[1.1]") != []
    assert "graph output 'p'" in group(cached, "wq[1.2]").why("scale")


def test_queries_that_are_the_keys_turn_but_do_not_scale() -> None:
    itself = case(
        "itself",
        "q = MatMul(x, wq) v = MatMul(x, wv) o = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, v)",
        {"wq": floats(8, 12), "wv": floats(8, 10), "wo": floats(10, 5)},
    )
    found = group(itself, "wq[1.1]")
    assert found.allows("rotate") and not found.allows("linear")
    assert found.why("scale") == ("Attention '': it multiplies this operand by itself",)


# All of it is executed


@pytest.mark.parametrize("each", CASES, ids=str)
def test_all_that_can_move_moves_and_the_output_stays(each: Case) -> None:
    expected = output(loaded(each))
    for kind in KINDS:
        model = loaded(each)
        analysis = analyse(model)
        found = list(moves(analysis, kind))
        assert len(found) >= (0 if each is TURNED and kind is not Freedom.SCALE else 2)
        move(analysis, found)
        assert difference(output(model), expected) < REASSOCIATION_RTOL
    assert not claims_fail(each)


@pytest.mark.parametrize("each", [STANDARD, MULTIPLE, SHARED], ids=str)
def test_every_head_scales_by_factors_of_its_own(each: Case) -> None:
    model = loaded(each)
    analysis = analyse(model)
    expected, random = output(model), np.random.default_rng(0)
    for place in ("wq[1.2]" if each is not MULTIPLE else "wq[1.1]", "wv[1.1]"):
        found = next(each for each in analysis.groups if place in map(str, each.members))
        for motion in found.motions("scale"):
            along = joint(analysis, found, motion, host(analysis, found))
            assert along is not None
            scale_within(analysis, along, np.exp2(random.integers(-3, 4, (2, found.size))))
    assert np.array_equal(output(model), expected)


# Planted lies

MICROSOFT = "com.microsoft"
LIES = (
    ("queries against values", SHARED, (MICROSOFT, "GroupQueryAttention"), replace(VALUES, inner=Inner(Q, V))),
    ("linear in queries", STANDARD, ("", "Attention"), Action((*Q, *V), outputs=1)),
    (
        "a missed bias",
        PROJECTED,
        (MICROSOFT, "Attention"),
        attending(
            (Term((0, 20)),),
            (Term((0, 21)),),
            (Term((0, 22)), Term((32,))),
            packed=(Packed(1, (12, 12, 10), (20, 21, 22)), Packed(2, (34,), (32,))),
        ),
    ),
    ("scaled angles", TURNED, (MICROSOFT, "GroupQueryAttention"), attending(alone(0, 7, 8), K, V, packed=IN_ONE)),
    ("caches left behind", BY_NAME["Attention-onnx-cached"], ("", "Attention"), attending(Q, K, V)),
    ("a state left behind", BY_NAME["LinearAttention"], (MICROSOFT, "LinearAttention"), VALUES),
)


def claims_fail(of: Case) -> bool:
    interface = of.outputs == ("y",)
    return bool(check_motions(loaded(of), of.feed, interface=interface).disagreements)


@pytest.mark.parametrize(("of", "operator", "lie"), [each[1:] for each in LIES], ids=[each[0] for each in LIES])
def test_an_action_that_lies_is_caught(of, operator, lie, monkeypatch) -> None:
    monkeypatch.setitem(coupling._ACTIONS, operator, lie)
    assert claims_fail(of)


def test_heads_that_mix_are_caught(monkeypatch) -> None:
    everything = property(lambda strand: True, lambda strand, value: None)
    monkeypatch.setattr(strands.Strand, "summed", everything)
    assert claims_fail(STANDARD)


def test_pairs_without_their_angles_are_caught(monkeypatch) -> None:
    monkeypatch.setattr(fused_attention, "_turning_width", lambda site, size: fresh(size))
    assert claims_fail(TURNED)


def test_outputs_that_are_left_out_are_no_place() -> None:
    """The caches, which are of different widths, have the same empty name."""
    text = STANDARD.text.replace("o = Attention", "o, , , s = Attention")
    between = replace(STANDARD, text=text, outputs=("y", "s"))
    assert not check_motions(loaded(between), between.feed, interface=False).disagreements
