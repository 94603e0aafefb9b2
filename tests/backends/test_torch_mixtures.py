"""Converted mixtures go back to PyTorch: experts and router are trained, masks are not, answers are ONNX Runtime's."""

import numpy as np
import pytest
import torch

import bevel
from bevel.backends.onnxruntime import Session
from bevel.backends.torch import routers, to_torch
from bevel.errors import PromiseBroken
from bevel.ir.provenance import Provenance, is_learnt, mark_learnt, set_provenance
from bevel.modules import check
from bevel.passes.rounding import EXPERTS_RTOL, multiply_precisely
from tests.graphs import graph

PLAIN = """
plain (float[n, 6] x) => (float[n, 6] y) {
  h = Gemm <transB = 1> (x, up, bias)
  r = Gelu (h)
  y = Gemm <transB = 1> (r, down, shift)
}
"""
WEIGHTS = {"up": (16, 6), "bias": (16,), "down": (6, 16), "shift": (6,)}
BLOCKS = PLAIN.replace("6]", "32]").replace("Gelu", "Relu")
CONVERSION = "convert-moe{{experts=4 active=3 shared=1 splitter=random router=logistic gates=softmax emit={}}}"
# Weights, biases of the shared expert and of the routed ones, and the shared constant.
COUNTS = {"masked": 4, "blocks": 13, "gather": 7, "moe": 7}


def converted(emit, from_module):
    model = graph(PLAIN, WEIGHTS)
    if from_module:
        for name, value in model.graph.initializers.items():
            set_provenance(value, Provenance((f"mlp.{name}",), trainable=True))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((32, 6)).astype(np.float32)} for _ in range(4)]
    bevel.optimize(model, CONVERSION.format(emit), calibration=feeds)
    return model


@pytest.mark.parametrize(
    ("emit", "from_module"), [("masked", True), ("blocks", False), ("blocks", True), ("gather", True), ("moe", True)]
)
def test_experts_and_router_are_trained_and_masks_are_not(emit, from_module):
    module = bevel.to_torch(converted(emit, from_module))  # compares with ONNX Runtime
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    held = {name: buffer.clone() for name, buffer in module.named_buffers()}
    routers = {name for name in before if "router" in name}
    assert {name.rsplit(".", 1)[-1] for name in routers} == {"weight", "bias"}
    assert len(before) == COUNTS[emit] + len(routers)
    data = [(torch.randn(64, 6), torch.randn(64, 6))]
    losses = [bevel.finetune(module, None, data, labels=-1, epochs=20, lr=0.01).history[-1].loss for _ in range(2)]
    assert losses[1] < losses[0]
    assert all(not torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    assert all(torch.equal(buffer, held[name]) for name, buffer in module.named_buffers())


def test_unmarked_constants_of_a_module_are_not_trained():
    model = graph(PLAIN, WEIGHTS)
    set_provenance(model.graph.initializers["up"], Provenance(("up",), trainable=True))
    mark_learnt(model.graph.initializers["down"], True)
    mark_learnt(model.graph.initializers["bias"], False)
    assert [is_learnt(value) for value in model.graph.initializers.values()] == [True, False, True, None]
    assert sorted(name for name, _ in to_torch(model).named_parameters()) == ["down", "up"]


def seen(experts=5, active=2, rows=400, seed=0):
    """Rows whose direction says which experts give what is large."""
    rng = np.random.default_rng(seed)
    given = rng.standard_normal((rows, 6)).astype(np.float32)
    sizes = np.exp(given @ rng.standard_normal((6, experts)))
    outputs = sizes[:, :, None] * rng.standard_normal((rows, experts, 3))
    gram = outputs @ outputs.transpose(0, 2, 1)
    order = np.argsort(-sizes, axis=1)[:, :active]
    best = np.zeros((rows, experts))
    np.put_along_axis(best, order, 1.0, axis=1)
    return given, gram, gram.sum(2), best


def tensors(*arrays):
    return routers.Seen(*(torch.from_numpy(np.asarray(each, np.float32)) for each in arrays))


def error(mask, gram, along):
    return (np.einsum("ra,rab,rb->r", mask, gram, mask) - 2 * (mask * along).sum(1)).mean()


def test_the_error_is_expected_over_exchanges():
    given, gram, along, best = seen(rows=3)
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    taken = routers.best_of(scores, torch.from_numpy(best).float())
    found = routers.expected(scores, taken, tensors(given, gram, along, best))
    total = 0.0
    for row, (mask, score) in enumerate(zip(taken.numpy(), scores.detach().numpy(), strict=True)):
        sets = [(mask, 0.0)]
        for a in np.flatnonzero(mask):
            for b in np.flatnonzero(1 - mask):
                sets.append((mask - np.eye(5)[a] + np.eye(5)[b], score[b] - score[a]))
        weights = np.exp([weight for _, weight in sets])
        errors = [each @ gram[row] @ each - 2 * each @ along[row] for each, _ in sets]
        total += float(weights @ errors / weights.sum()) / 3
    assert found.item() == pytest.approx(total, rel=1e-4)
    found.backward()
    assert scores.grad.abs().min() > 0


@pytest.mark.parametrize("width", [0, 8])
def test_a_trained_router_chooses_better_than_it_began(width):
    arrays = seen()
    start = np.zeros((6, 5)), np.zeros(5)
    found = routers.trained(*arrays, start, width=width, epochs=40, seed=0)
    again = routers.trained(*arrays, start, width=width, epochs=40, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert [each.shape for each in found] == [(6, 5), (5,), (6, 8), (8,), (8, 5)][: 2 if not width else 5]
    scores = arrays[0] @ found[0] + found[1]
    if width:
        scores = scores + np.maximum(arrays[0] @ found[2] + found[3], 0) @ found[4]
    chosen = np.zeros((400, 5))
    np.put_along_axis(chosen, np.argsort(-scores, axis=1)[:, :2], 1.0, axis=1)
    first = np.tile(np.arange(5) < 2, (400, 1)).astype(float)  # what equal scores take
    least, found_error, start_error = (error(mask, *arrays[1:3]) for mask in (arrays[3], chosen, first))
    assert found_error - least < 0.25 * (start_error - least)


@pytest.mark.parametrize("router", ["trained", "trained-mlp"])
def test_trained_routers_are_emitted_as_they_were_trained(router):
    model = graph(PLAIN, WEIGHTS)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((64, 6)).astype(np.float32)} for _ in range(4)]
    before = model.clone()
    bevel.optimize(
        model, f"convert-moe{{experts=4 active=2 shared=0 splitter=kmeans router={router}}}", calibration=feeds
    )
    module = bevel.to_torch(model)
    assert len([name for name, _ in module.named_parameters() if "router" in name]) == (2 if router == "trained" else 5)
    assert 0 < bevel.verify(before, model, feeds, bevel.Lossy()).error < 1


@pytest.mark.parametrize(
    ("bits", "block", "gates", "near"), [(4, 16, "softmax", 1e-4), (4, 32, "one", 1e-4), (8, 16, "one", EXPERTS_RTOL)]
)
def test_experts_of_integers_answer_as_onnx_runtime_does(bits, block, gates, near):
    """The kernel for 4 bits takes rows as they are if asked to; the one for 8 bits always rounds them to 8 bits."""
    model = graph(BLOCKS, {"up": (128, 32), "bias": (128,), "down": (32, 128), "shift": (32,)})
    feed = {"x": np.random.default_rng(0).standard_normal((48, 32)).astype(np.float32)}
    options = f"experts=4 active=3 shared=1 splitter=random router=mean-gate refit=false control=skip gates={gates}"
    bevel.optimize(model, f"convert-moe{{{options} emit=qmoe bits={bits} block={block}}}", calibration=[feed])
    module = bevel.to_torch(model)  # compares with ONNX Runtime
    multiply_precisely(model)
    with Session(model) as session:
        wanted = session.run(feed)["y"]
    assert far(module, feed, wanted) <= near
    for name, buffer in module.named_buffers():
        if "down" in name and name.endswith("scales"):
            buffer.mul_(1.2)
    assert far(module, feed, wanted) > EXPERTS_RTOL
    with pytest.raises(PromiseBroken, match="a bug in a torch function"):
        check(model, module, [feed], "to_torch")


def far(module, feed, wanted):
    return np.abs(module(torch.from_numpy(feed["x"])).detach().numpy() - wanted).max() / np.abs(wanted).max()
