"""Every tensor that a transform changes is needed: where a bias, a gain or a weight stays behind, outputs differ."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from bevel.passes.base import REASSOCIATION_RTOL

BLOCK = """
<ir_version: 10, opset_import: ["" : 23]>
block (float[n, t, 6] x) => (float[n, t, 5] y) {
  s = MatMul (x, table)
  a = LayerNormalization (s, gain, shift)
  q0 = MatMul (a, wq)
  q = Add (q0, bq)
  k0 = MatMul (a, wk)
  k = Add (k0, bk)
  v0 = MatMul (a, wv)
  v = Add (v0, bv)
  o = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)
  p = MatMul (o, wo)
  m = Add (s, p)
  b = LayerNormalization (m, gain2, shift2)
  u0 = MatMul (b, up)
  u = Add (u0, bup)
  r = Relu (u)
  d = MatMul (r, down)
  e = Add (m, d)
  f = LayerNormalization (e, last, end)
  y = MatMul (f, head)
}
"""
SHAPES = {
    **{"table": (6, 16), "gain": (16,), "shift": (16,), "wq": (16, 32), "bq": (32,), "wk": (16, 16), "bk": (16,)},
    **{"wv": (16, 16), "bv": (16,), "wo": (32, 16), "gain2": (16,), "shift2": (16,), "up": (16, 32), "bup": (32,)},
    **{"down": (32, 16), "last": (16,), "end": (16,), "head": (16, 5)},
}
FEEDS = [{"x": np.random.default_rng(1).standard_normal((2, 5, 6)).astype(np.float32)}]
# It adds the same to all scores of a query, whatever it is.
HIDDEN_BY_SOFTMAX = "bk"
NORMS = {"gain", "shift", "gain2", "shift2", "last", "end"}
HEADS = {"wq", "bq", "wk", "bk"}
VALUES = {"wv", "bv", "wo"}
HIDDEN = {"up", "bup", "down"}
# What each pass changes at least.
PASSES = {
    "reorder-channels{by=key-norm}": HEADS,
    "reorder-channels{by=rms}": {*HEADS, *VALUES, *HIDDEN},
    "smooth": {*NORMS, *VALUES, *HIDDEN, "wq", "wk", "head"},
    "awq{format=int3 block=16}": {*NORMS, "wq", "wk", "wv", "up", "head"},
    "equalize": {*VALUES, *HIDDEN},
    "rotate": {*SHAPES} - {"bup"},
}


def block() -> ir.Model:
    proto, random = onnx.parser.parse_model(BLOCK), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = random.standard_normal(shape) / np.sqrt(shape[0] if len(shape) > 1 else 1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return bevel.load(proto)


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def answer(model: ir.Model) -> np.ndarray:
    with Session(model, level=Level.AS_WRITTEN, threads=1) as session:
        return session.run(FEEDS[0])["y"]


@pytest.mark.parametrize("passes", PASSES)
def test_nothing_that_is_changed_can_stay_behind(passes: str) -> None:
    model = block()
    before = weights(model)
    changed = model.clone()
    bevel.optimize(changed, passes, calibration=FEEDS)
    after = weights(changed)
    moved = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert moved >= PASSES[passes]
    expected = answer(model)
    assert np.abs(answer(changed) - expected).max() < REASSOCIATION_RTOL * np.abs(expected).max()
    for name in sorted(moved - {HIDDEN_BY_SOFTMAX}):
        changed.graph.initializers[name].const_value = ir.tensor(before[name], name=name)
        assert np.abs(answer(changed) - expected).max() > REASSOCIATION_RTOL * np.abs(expected).max(), name
        changed.graph.initializers[name].const_value = ir.tensor(after[name], name=name)
