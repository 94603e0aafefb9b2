"""Converted mixtures go back to PyTorch: experts and router are trained, masks are not, answers are ONNX Runtime's."""

import numpy as np
import pytest
import torch

import bevel
from bevel.backends.torch import to_torch
from bevel.ir.provenance import Provenance, is_learnt, mark_learnt, set_provenance
from tests.graphs import graph

PLAIN = """
plain (float[n, 6] x) => (float[n, 6] y) {
  h = Gemm <transB = 1> (x, up, bias)
  r = Gelu (h)
  y = Gemm <transB = 1> (r, down, shift)
}
"""
WEIGHTS = {"up": (16, 6), "bias": (16,), "down": (6, 16), "shift": (6,)}
CONVERSION = "convert-moe{{experts=4 active=3 shared=1 splitter=random router=logistic emit={}}}"


def converted(emit, from_module):
    model = graph(PLAIN, WEIGHTS)
    if from_module:
        for name, value in model.graph.initializers.items():
            set_provenance(value, Provenance((f"mlp.{name}",), trainable=True))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((32, 6)).astype(np.float32)} for _ in range(4)]
    bevel.optimize(model, CONVERSION.format(emit), calibration=feeds)
    return model


@pytest.mark.parametrize("from_module", [False, True])
@pytest.mark.parametrize("emit", ["masked", "blocks"])
def test_experts_and_router_are_parameters_and_masks_are_not(emit, from_module):
    module = bevel.to_torch(converted(emit, from_module))  # compares with ONNX Runtime
    parameters = {name for name, _ in module.named_parameters()}
    buffers = {name for name, _ in module.named_buffers()}
    routers = {name for name in parameters if "router" in name}
    experts = {name for name in parameters - routers if name.rsplit(".", 1)[-1] in WEIGHTS}
    assert {name.rsplit(".", 1)[-1] for name in routers} == {"weight", "bias"}
    assert parameters == routers | experts
    assert len(experts) == (4 if emit == "masked" else 13)  # up, bias, down of four experts, and the shared constant
    assert buffers
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    bevel.finetune(module, None, [(torch.randn(64, 6), torch.randn(64, 6))], labels=-1, epochs=3, lr=0.1)
    learnt = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert learnt >= experts


def test_unmarked_constants_of_a_module_are_not_trained():
    model = graph(PLAIN, WEIGHTS)
    set_provenance(model.graph.initializers["up"], Provenance(("up",), trainable=True))
    mark_learnt(model.graph.initializers["down"], True)
    mark_learnt(model.graph.initializers["bias"], False)
    assert [is_learnt(value) for value in model.graph.initializers.values()] == [True, False, True, None]
    assert sorted(name for name, _ in to_torch(model).named_parameters()) == ["down", "up"]
