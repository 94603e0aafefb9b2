"""Exports kept in a folder: found again when nothing changed, and only then."""

from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

import bevel
from bevel.errors import UsageError
from bevel.frontends import load
from bevel.frontends.torch.arguments import arguments_of
from bevel.frontends.torch.description import told
from bevel.frontends.torch.fingerprint import fingerprint
from bevel.frontends.torch.state import state_of
from bevel.ir.provenance import origin, provenance

X = torch.randn(2, 4)


class Scaled(nn.Module):
    def __init__(self, factor=2.0, width=4):
        super().__init__()
        self.factor, self.layer, self.head = factor, nn.Linear(width, 3), nn.Linear(3, 3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.activation = partial(torch.add, other=1.0)

    def forward(self, x):
        return self.activation(self.layer(x) * self.factor + self.table)


class Other(Scaled):
    pass


def key(module, x=X, sizes=None):
    return fingerprint(module, state_of(module), arguments_of(module, x, sizes))


def described(model):
    nodes = [(node.op_type, names(node.inputs), names(node.outputs)) for node in model.graph]
    sources = {name: provenance(value) for name, value in model.graph.initializers.items()}
    return nodes, sources, sorted(origin(model).unused), dict(model.metadata_props)


def names(values):
    return [value.name if value is not None else "" for value in values]


@pytest.fixture
def no_exporter(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("exported again")

    return partial(monkeypatch.setattr, torch.onnx, "export", refuse)


def test_an_export_is_found_again_whole(tmp_path, no_exporter):
    module = Scaled()
    first = load(module, X, dynamic_shapes={"x": {0: "batch"}}, cache=tmp_path / "new" / "folder")
    no_exporter()
    again = load(module, X, dynamic_shapes={"x": {0: "batch"}}, cache=tmp_path / "new" / "folder")
    assert described(again) == described(first)
    for name, model in {"first": first, "again": again}.items():
        bevel.save(model, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


def test_trained_parameters_are_found_with_what_they_are_now(tmp_path, no_exporter):
    module = Scaled()
    load(module, X, cache=tmp_path)
    no_exporter()
    with torch.no_grad():
        module.layer.weight.mul_(2)
    model = load(module, X, cache=tmp_path)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"x": X.numpy()})[0], module(X).detach(), rtol=1e-5)
    held = model.graph.initializers["layer.weight"].const_value.numpy()
    assert np.shares_memory(held, module.layer.weight.detach().numpy())


@pytest.mark.parametrize("damage", [b"", b"\x08\x0a", None])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    load(Scaled(), X, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"!" if damage is None else damage)
    assert described(load(Scaled(), X, cache=tmp_path)) == described(load(Scaled(), X))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [whole]


def test_the_same_module_made_twice_has_one_key():
    assert key(Scaled()) == key(Scaled())


def wrapped(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


CHANGES = {
    "an attribute": lambda: key(Scaled(3.0)),
    "a width": lambda: key(Scaled(width=5), torch.randn(2, 5)),
    "a class": lambda: key(Other()),
    "the size of an input": lambda: key(Scaled(), torch.randn(3, 4)),
    "the type of an input": lambda: key(Scaled(), X.double()),
    "what may vary": lambda: key(Scaled(), X, {"x": {0: "batch"}}),
    "a name of what may vary": lambda: key(Scaled(), X, {"x": {0: "rows"}}),
    "a function": lambda: key(wrapped(Scaled(), activation=torch.relu)),
    "an argument of a function": lambda: key(wrapped(Scaled(), activation=partial(torch.add, other=2.0))),
    "a constant": lambda: key(wrapped(Scaled(), table=torch.ones(3))),
    "what is trained": lambda: key(Scaled().requires_grad_(False)),
    "a part": lambda: key(wrapped(Scaled(), head=nn.Identity())),
    "a tie": lambda: key(tied(Scaled())),
    "a hook": lambda: key(hooked(Scaled())),
    "a type": lambda: key(Scaled().double(), X.double()),
}


def hooked(module):
    module.layer.register_forward_hook(lambda layer, inputs, output: output * 2)
    return module


def tied(module):
    module.head.bias = module.layer.bias
    return module


@pytest.mark.parametrize("change", CHANGES)
def test_what_shapes_the_graph_changes_the_key(change):
    sizes = {"x": {0: "batch"}} if change == "a name of what may vary" else None
    assert CHANGES[change]() != key(Scaled(), X, sizes)


def test_objects_are_told_the_same_way_in_every_process():
    loop = {"set": {"b", "a"}, "function": test_the_same_module_made_twice_has_one_key, "object": object()}
    loop["loop"] = loop
    lines = list(told("value", loop, {}))
    assert not [line for line in lines if " at 0x" in line]
    assert lines[-1] == "'loop' again 0"


def test_code_in_no_file_is_not_kept(tmp_path):
    space = {"nn": nn, "__name__": "notebook"}
    exec("class Cell(nn.Module):\n    def forward(self, x):\n        return x + 1", space)
    with pytest.raises(UsageError, match="cannot tell when the code of notebook changes"):
        load(space["Cell"](), X, cache=tmp_path)


def test_a_folder_that_cannot_be_used_is_told_before_the_export(tmp_path, no_exporter):
    (tmp_path / "file").write_text("")
    no_exporter()
    with pytest.raises(UsageError, match="file: cannot be used: "):
        load(Scaled(), X, cache=tmp_path / "file")
