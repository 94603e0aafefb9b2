"""A small decoder with routed experts comes in, gets dense or fewer experts, and goes back to PyTorch."""

import numpy as np
import onnx
import pytest
import torch

import bevel
from bevel.backends.onnxruntime import Session
from tests.passes.mixture_graphs import CONSTANTS, END, GATHERED, ROUTER, WIDTH, arranged, weights

TOKENS, LAYERS = 20, 1
ATTENTION = """
  epsilon = Constant <value_float = 0.00001> ()
  square0 = Mul (x, x)
  mean0 = ReduceMean (square0, minus)
  safe0 = Add (mean0, epsilon)
  root0 = Sqrt (safe0)
  unit0 = Div (x, root0)
  n0 = Mul (unit0, gain0)
  query = MatMul (n0, wq)
  key = MatMul (n0, wk)
  value = MatMul (n0, wv)
  turn = Transpose <perm = [0, 2, 1]> (key)
  scores = MatMul (query, turn)
  shares = Softmax <axis = -1> (scores)
  taken = MatMul (shares, value)
  mixed = MatMul (taken, wo)
  r = Add (x, mixed)
  square1 = Mul (r, r)
  mean1 = ReduceMean (square1, minus)
  safe1 = Add (mean1, epsilon)
  root1 = Sqrt (safe1)
  unit1 = Div (r, root1)
  z = Mul (unit1, gain1)
"""
EXPERTS = (ROUTER + GATHERED).replace("(x, flat)", "(z, flat)") + END.replace("y =", "m =") + "y = Add (r, m)\n"


def part(text, signature, arrays):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> part {signature} {{ {text} }}')
    read = {name for node in proto.graph.node for name in node.input}
    for name, array in arrays.items():
        if name in read:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return proto


def decoder(spread=1.0):
    """Return a decoder whose layers have attention and routed experts."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    ends = {"table": table, "head": table.T}
    whole = part("y = Gather (table, ids)", "(int64[b, s] ids) => (float[b, s, 8] y)", ends)
    for number in range(LAYERS):
        names = ("wq", "wk", "wv", "wo")
        arrays = {name: (0.3 * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32) for name in names}
        gains = {name: rng.uniform(0.8, 1.2, WIDTH).astype(np.float32) for name in ("gain0", "gain1")}
        given = {**arranged(weights(number, spread)), **arrays, **gains}
        layer = part(CONSTANTS + ATTENTION + EXPERTS, "(float[b, s, 8] x) => (float[b, s, 8] y)", given)
        whole = joined(whole, layer, f"layer{number}.")
    return bevel.load(
        joined(whole, part("y = MatMul (x, head)", "(float[b, s, 8] x) => (float[b, s, 20] y)", ends), "end.")
    )


def joined(first, second, prefix):
    """Return two models, one after the other."""
    output = first.graph.output[0].name
    named = onnx.compose.add_prefix(second, prefix)
    return onnx.compose.merge_models(first, named, io_map=[(output, f"{prefix}x")])


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    return [{"ids": rng.integers(0, TOKENS, (2, 9))} for _ in range(3)]


@pytest.mark.parametrize(("passes", "blocks"), [("average-experts", 0), ("merge-experts{ratio=0.5}", 2 * LAYERS)])
def test_experts_become_one_or_half_as_many_and_train_on(passes, blocks, inputs):
    model = decoder(spread=0.2)
    (step,) = bevel.optimize(model, passes, calibration=inputs).steps
    assert 1e-6 < step.error < 0.3
    assert [node.op_type for node in model.graph].count("If") == blocks
    module = bevel.to_torch(model)  # compares with ONNX Runtime
    with Session(model) as session:
        (wanted,) = session.run(inputs[0]).values()
    found = module(torch.from_numpy(inputs[0]["ids"]))
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-3, atol=1e-4)
    found.square().mean().backward()
    experts = [each for name, each in module.named_parameters() if ".down" in name]
    assert len(experts) == (blocks or LAYERS)
    assert all(each.grad is not None for each in experts)
