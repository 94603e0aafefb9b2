"""PyTorch modules in: what they compute, where their parameters went, and that they stay as they were."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from bevel.errors import UsageError
from bevel.frontends import load
from bevel.frontends.torch.state import UNUSED
from bevel.ir.provenance import provenance
from tests.zoo.recipes import RECIPES

TOLERANCE = 1e-5  # relative to the largest output: float32 sums in another order, some hundred operators deep


def run(model, **feed):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})


def sources(model):
    return {value.name: provenance(value) for value in model.graph.initializers.values() if provenance(value)}


def operators(model):
    return [node.op_type for node in model.graph]


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.two(self.one(x).relu())


def test_a_module_becomes_a_graph_that_computes_the_same():
    module, x = Linear(), torch.randn(2, 4)
    model = load(module, x, dynamic_shapes={"x": {0: "batch"}})
    x = torch.randn(5, 4)
    np.testing.assert_allclose(run(model, x=x)[0], module(x).detach(), rtol=TOLERANCE, atol=TOLERANCE)
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == ["[batch,4]", "[batch,3]"]


def test_a_module_needs_example_inputs():
    with pytest.raises(UsageError, match="needs example_inputs"):
        load(Linear())
