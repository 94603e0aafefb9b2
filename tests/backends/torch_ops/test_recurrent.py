"""Recurrent layers against ONNX Runtime, over what the node tests leave out: lengths, clipping, other activations."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from bevel.backends.torch.ops.recurrent import gru, lstm, rnn
from bevel.errors import UnsupportedModel

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": rnn, "GRU": gru, "LSTM": lstm}
NAMES = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
# Both add up a handful of float32 products of size one in another order.
TOLERANCE = 2e-6

VARIANTS = [
    {},
    {"direction": "reverse"},
    {"direction": "bidirectional"},
    {"clip": 0.3},
    {"RNN": {"activations": ["Relu"]}, "GRU": {"linear_before_reset": 1}, "LSTM": {"input_forget": 1}},
    {
        "RNN": {"activations": ["Affine"], "activation_alpha": [0.4], "activation_beta": [0.1]},
        "GRU": {"activations": ["HardSigmoid", "LeakyRelu"], "activation_alpha": [0.3, 0.1], "activation_beta": [0.4]},
        "LSTM": {"activations": ["HardSigmoid", "Softsign", "Elu"]},
    },
    {"direction": "bidirectional", "GRU": {"linear_before_reset": 1}, "RNN": {"activations": ["Tanh", "Relu"]}},
]


def operands(kind, directions, present, seed=0):
    random = np.random.default_rng(seed)
    gates = GATES[kind] * HIDDEN
    every = {
        "X": random.standard_normal((STEPS, BATCH, INPUTS)),
        "W": random.standard_normal((directions, gates, INPUTS)),
        "R": random.standard_normal((directions, gates, HIDDEN)),
        "B": random.standard_normal((directions, 2 * gates)),
        "sequence_lens": np.array([5, 2, 4], np.int32),
        "initial_h": random.standard_normal((directions, BATCH, HIDDEN)),
        "initial_c": random.standard_normal((directions, BATCH, HIDDEN)),
        "P": random.standard_normal((directions, 3 * HIDDEN)),
    }
    chosen = {name: array for name, array in every.items() if name in ("X", "W", "R", *present)}
    return {name: array if array.dtype == np.int32 else array.astype(np.float32) for name, array in chosen.items()}


def runtime(kind, feed, attributes, outputs):
    inputs = [name if name in feed else "" for name in NAMES]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(kind, inputs, [f"y{at}" for at in range(outputs)], hidden_size=HIDDEN, **attributes)
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in feed.items()],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)


def ours(kind, feed, attributes, outputs):
    tensors = [torch.tensor(feed[name]) if name in feed else None for name in NAMES[: 8 if kind == "LSTM" else 6]]
    return FUNCTIONS[kind](*tensors, outputs=outputs, **attributes)


@pytest.mark.parametrize("present", [(), ("B",), ("B", "sequence_lens"), ("B", "sequence_lens", "initial_h")], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", GATES)
def test_layers_compute_what_onnx_runtime_does(kind, variant, present):
    attributes = {key: value for key, value in variant.items() if key not in GATES} | variant.get(kind, {})
    directions = 2 if variant.get("direction") == "bidirectional" else 1
    outputs = 3 if kind == "LSTM" and "initial_h" not in present else 2
    feed = operands(kind, directions, present)
    expected = runtime(kind, feed, attributes, outputs)
    for got, wanted in zip(ours(kind, feed, attributes, outputs), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_peepholes_and_cells_are_those_of_onnx_runtime(direction):
    feed = operands("LSTM", 2 if direction == "bidirectional" else 1, NAMES)
    expected = runtime("LSTM", feed, {"direction": direction}, 3)
    for got, wanted in zip(ours("LSTM", feed, {"direction": direction}, 3), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("kind", GATES)
def test_batch_first_is_the_same_layer(kind):
    feed = operands(kind, 2, ("B", "initial_h", "initial_c") if kind == "LSTM" else ("B", "initial_h"))
    turned = {name: np.swapaxes(a, 0, 1) if name in ("X", "initial_h", "initial_c") else a for name, a in feed.items()}
    y, h, *_ = ours(kind, feed, {"direction": "bidirectional"}, 2)
    turned_y, turned_h, *_ = ours(kind, turned, {"direction": "bidirectional", "layout": 1}, 2)
    torch.testing.assert_close(turned_y, y.permute(2, 0, 1, 3))
    torch.testing.assert_close(turned_h, h.transpose(0, 1))


@pytest.mark.parametrize("kind", GATES)
def test_the_kernel_and_the_loop_have_the_same_gradients(kind):
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    feed = operands(kind, 1, ("B", "sequence_lens"))
    gradients = []
    for more in ({}, {"clip": 1e6}):  # clipping that does nothing takes the loop
        tensors = [torch.tensor(feed[name], requires_grad=name in ("W", "R", "B")) for name in NAMES[:5]]
        y, h, *_ = FUNCTIONS[kind](*tensors, outputs=2, **attributes, **more)
        (y.square().sum() + h.sum()).backward()
        gradients.append([tensor.grad for tensor in tensors if tensor.requires_grad])
    for fused, looped in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, looped)


def test_unknown_activations_are_refused_by_name():
    feed = operands("RNN", 1, ())
    with pytest.raises(UnsupportedModel, match="Swoosh"):
        ours("RNN", feed, {"activations": ["Swoosh"]}, 2)
    with pytest.raises(UnsupportedModel, match="no defaults"):
        ours("RNN", feed, {"activations": ["Affine"]}, 2)
