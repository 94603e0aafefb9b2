"""Whatever convert-moe writes, the passes on mixtures find again: every emission, in layers of every form."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.errors import EditRefused
from bevel.ir.feed_forward import feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.names import Names
from bevel.ir.split import Partition
from bevel.passes.base import REASSOCIATION_RTOL, Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.experts.emissions import EMISSIONS, Integers
from bevel.passes.experts.evidence import evidence
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.routers import Linear
from bevel.passes.mixtures.alignment import joined
from bevel.passes.mixtures.beside import with_shared
from bevel.passes.mixtures.recognition import mixtures
from bevel.passes.mixtures.writing import dense as one_layer
from bevel.passes.mixtures.writing import finish
from tests.graphs import graph

GATED = """
gated (float[n, s, 16] x) => (float[n, s, 16] y) {
  g = MatMul (x, gate)
  e = Sigmoid (g)
  a = Mul (g, e)
  u = MatMul (x, up)
  h = Mul (a, u)
  y = MatMul (h, down)
}
"""
CONVS = """
convs (float[n, 16, rows, columns] x) => (float[n, 16, rows, columns] y) {
  w = Conv <kernel_shape = [1, 1]> (x, up, b)
  h = Relu (w)
  z = Conv <kernel_shape = [1, 1]> (h, down, c)
  y = Add (x, z)
}
"""
HEAD = """
head (float[n, 16] x) => (float[n, 10] y) {
  w = Gemm <transB = 1> (x, up, b)
  h = Relu (w)
  y = Gemm <transB = 1> (h, down, c)
}
"""
FORMS = {
    "gated": (GATED, {"gate": (16, 64), "up": (16, 64), "down": (64, 16)}, (2, 24, 16)),
    "convs": (CONVS, {"up": (64, 16, 1, 1), "b": (64,), "down": (16, 64, 1, 1), "c": (16,)}, (2, 16, 6, 4)),
    "head": (HEAD, {"up": (64, 16), "b": (64,), "down": (10, 64), "c": (10,)}, (48, 16)),
}
# What is rounded to 8 bits, in weights and in what is read, relative to the largest output.
EIGHT_BITS = 3e-2
LIMITS = {
    "blocks": REASSOCIATION_RTOL,
    "dynamic": EIGHT_BITS,
    "moe": REASSOCIATION_RTOL,
    "qmoe": EIGHT_BITS,
    "gather": REASSOCIATION_RTOL,
    "masked": REASSOCIATION_RTOL,
}
CASES = [
    (emit, form) for form in FORMS for emit in EMISSIONS if form == "gated" or emit in ("blocks", "gather", "masked")
]
CONVERSION = "convert-moe{{experts=4 active=3 splitter=random router=mean-gate refit=false control=skip {}}}"


def made(form):
    text, shapes, size = FORMS[form]
    rng = np.random.default_rng(1)
    return graph(text, shapes), [{"x": rng.standard_normal(size).astype(np.float32)}]


def converted(form, options):
    model, feeds = made(form)
    bevel.optimize(model, CONVERSION.format(options), calibration=feeds)
    return model, feeds


def emitted(form, emit):
    """Return a layer as three experts, two of them active, and a shared one."""
    model, feeds = made(form)
    (found,) = evidence(model, feed_forwards(analyse(model))[0], context(feeds))
    rng = np.random.default_rng(0)
    router = Linear(rng.standard_normal((16, 3)), rng.standard_normal(3))
    each = Mixture(Partition.of(rng.permutation(64) % 4 - 1, 3), router, 2)
    EMISSIONS[emit].prepare(found, found.down, Integers(8, 16))(found.parts, each, Names(model))
    finish(model)
    return model, feeds


def outputs(model, feeds):
    with Session(model) as session:
        return session.run(feeds[0])["y"]


def context(feeds):
    return Context(0, Calibration(lambda: feeds, "a test"), Execution())


def far(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize(("emit", "form"), CASES)
def test_every_emission_is_found_and_is_the_layer_again(emit, form):
    dense, feeds = made(form)
    model, _ = emitted(form, emit)
    mixed, wanted = outputs(model, feeds), outputs(dense, feeds)
    (found,), _ = mixtures(model, context(feeds))
    whole, why = with_shared(model, found, context(feeds))
    assert (len(whole.experts), whole.active, whole.gating.kind, whole.experts[0].size) == (3, 2, "one", 16)
    assert (whole.shared.size, why) == (16, "")
    experts = [expert.scaled(whole.gating.scale) for expert in whole.experts]
    one_layer(model, whole, joined([*experts, whole.shared]), Names(model))
    finish(model)
    assert not {"If", "TopK", "MoE", "QMoE"} & {node.op_type for node in model.graph}
    assert far(outputs(model, feeds), wanted) <= LIMITS[emit] < far(mixed, wanted)
    (again,), _ = feed_forwards(analyse(model))
    assert again.size == 64


@pytest.mark.parametrize(
    ("emit", "form", "passes"),
    [("masked", "head", "merge-experts{ratio=0}"), ("gather", "convs", "prune-experts{ratio=0}")],
)
def test_passes_on_mixtures_take_any_form(emit, form, passes):
    model, feeds = converted(form, f"shared=1 emit={emit}")
    before = outputs(model, feeds)
    with pytest.raises(EditRefused, match="average-experts makes dense layers of them"):
        bevel.optimize(model, CONVERSION.format("shared=0"), calibration=feeds)
    bevel.optimize(model, passes, calibration=feeds)
    assert far(outputs(model, feeds), before) <= REASSOCIATION_RTOL
    assert [node.op_type for node in model.graph].count("If") == 3


def test_thresholds_are_found():
    model, feeds = converted("gated", "shared=0 threshold=0.6 gates=softmax emit=blocks")
    (found,), _ = mixtures(model, context(feeds))
    assert (found.gating.kind, round(found.gating.threshold, 6)) == ("counted", 0.6)
    mixed = outputs(model, feeds)
    bevel.optimize(model, "merge-experts{ratio=0}", calibration=feeds)
    assert far(outputs(model, feeds), mixed) <= REASSOCIATION_RTOL


BESIDE = """
m (float[n, 16] x) => (float[n, 16] y) {
  l = MatMul (x, router)
  t = com.microsoft.MoE <k = 2, activation_type = "relu", normalize_routing_weights = 1> (x, l, first, , second)
  u = MatMul (x, up)
  r = Relu (u)
  d = MatMul (r, down)
  y = Add (d, t)
}
"""
BESIDE_WEIGHTS = {"router": (16, 3), "first": (3, 12, 16), "second": (3, 16, 12), "up": (16, 20), "down": (20, 16)}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("y = Add (d, t)", "w = MatMul (x, own) o = Sigmoid (w) e = Mul (d, o) y = Add (e, t)", "a gate of its own"),
        ("r = Relu (u)", "r = Tanh (u)", "its activation is another one"),
        ("y = Add (d, t)", "y = Mul (d, t)", "away from what its experts give"),
    ],
)
def test_what_is_no_shared_expert_stays_beside(old, new, why):
    model, feeds = graph(BESIDE.replace(old, new), {**BESIDE_WEIGHTS, "own": (16, 1)}), made("head")[1]
    step = bevel.optimize(model, "average-experts", calibration=feeds).steps[0]
    assert why in " ".join(note for note in step.notes if note.startswith("a layer stays beside"))
    assert (20, 16) in {tuple(value.shape.numpy()) for value in model.graph.initializers.values()}


def test_copies_are_averaged_and_the_shared_entries_join_them():
    model, feeds = graph(BESIDE, BESIDE_WEIGHTS), made("head")[1]
    for name in ("first", "second"):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[:] = array[0]
        value.const_value = ir.tensor(array, name=name)
    before = outputs(model, feeds)
    step = bevel.optimize(model, "average-experts", calibration=feeds).steps[0]
    assert any("mean of 3 experts and the shared one" in note for note in step.notes)
    assert far(outputs(model, feeds), before) <= REASSOCIATION_RTOL
    assert sorted(tuple(value.shape.numpy()) for value in model.graph.initializers.values()) == [(16, 32), (32, 16)]
