"""Names that a module and the exporter both give."""

import pytest
import torch
from torch import nn

from bevel.backends.onnxruntime import Session
from bevel.frontends.torch import load


class Shifted(nn.Module):
    """Shapes that the exporter computes in values `val_0`, `val_1`, ... beside a buffer of a given name."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.register_buffer(name, torch.tensor([1.0, 2.0]))

    def forward(self, x):
        return x.reshape(x.shape[0], 2, -1).sum(2) + self.get_buffer(self.name)


@pytest.mark.parametrize("name", [f"val_{number}" for number in range(6)])
def test_a_buffer_keeps_its_name_where_the_exporter_uses_it_too(name):
    """A module from a graph has buffers of such names."""
    module, x = Shifted(name), torch.randn(3, 4)
    model = load(module, (x,), dynamic_shapes={"x": {0: "batch"}})
    assert name in model.graph.initializers
    with Session(model) as session:
        (got,) = session.run({"x": x.numpy()}).values()
    assert torch.allclose(torch.from_numpy(got), module(x))
