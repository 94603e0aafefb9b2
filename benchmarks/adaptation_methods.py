"""Ways to adapt a trained model: all its weights, chosen channels (S2FT), or thin matrices beside some weights (LoRA).

Each is the same converted graph, so that they differ in nothing but what is trained.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

import bevel
from benchmarks import character_gpt as gpt
from bevel.ir.names import Names
from bevel.ir.provenance import Provenance, set_provenance
from bevel.ir.resize import add_initializer
from bevel.passes.fitting.layers import Layer, layers

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Adaptation:
    """A module to train, and what makes a model of it afterwards."""

    module: nn.Module
    merged: Callable[[], ir.Model]

    @property
    def trained(self) -> int:
        return sum(each.numel() for each in self.module.parameters() if each.requires_grad)


@dataclass(frozen=True)
class Method:
    """A way to adapt, and its learning rate."""

    name: str
    start: Callable[[ir.Model, int], Adaptation]
    lr: float


def everything(model: ir.Model, seed: int) -> Adaptation:
    """Train all weights."""
    module = bevel.to_torch(model, verify=False)
    return Adaptation(module, lambda: gpt.load(module))


def selected(**options: Any) -> Callable[[ir.Model, int], Adaptation]:
    """Train a share of the channels or heads."""

    def start(model: ir.Model, seed: int) -> Adaptation:
        selection = bevel.select_finetune(model, seed=seed, **options)
        return Adaptation(selection.module, selection.merged)

    return start


def low_rank(rank: int, *patterns: str) -> Callable[[ir.Model, int], Adaptation]:
    """Train two thin matrices beside each weight that matches: `x @ (w + a @ b)`, where `b` begins as zero."""

    def start(model: ir.Model, seed: int) -> Adaptation:
        wide, generator = model.clone(), np.random.default_rng(seed)
        names = Names(wide)
        found = [layer for layer in layers(wide) if any(fnmatchcase(str(layer.weight.name), each) for each in patterns)]
        pairs = {str(layer.weight.name): put_beside(layer, rank, generator, names) for layer in found}
        module = bevel.to_torch(wide, verify=False)
        thin = {name for pair in pairs.values() for name in pair}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in thin)
        return Adaptation(module, lambda: folded(model, module, pairs))

    return start


def put_beside(layer: Layer, rank: int, generator: np.random.Generator, names: Names) -> tuple[str, str]:
    """Add the product with two thin matrices to what a layer computes; return their names."""
    inputs, outputs = layer.sizes[layer.in_axis], layer.sizes[layer.out_axis]
    graph, (y,) = layer.node.graph, layer.node.outputs
    assert isinstance(graph, ir.Graph) and layer.node.op_type == "MatMul"
    bound = inputs**-0.5
    contents = {"a": generator.uniform(-bound, bound, (inputs, rank)), "b": np.zeros((rank, outputs))}
    thin = []
    for what, content in contents.items():
        name = f"{str(layer.weight.name).removesuffix('.weight')}.{what}"
        value = add_initializer(graph, name, ir.tensor(content.astype(np.float32)), names)
        set_provenance(value, Provenance((str(value.name),), trainable=True))
        thin.append(value)
    down = ir.node("MatMul", [layer.data, thin[0]])
    up = ir.node("MatMul", [down.outputs[0], thin[1]])
    both = ir.node("Add", [y, up.outputs[0]])
    ir.convenience.replace_all_uses_with(y, both.outputs[0])
    both.replace_input_with(0, y)
    graph.insert_after(layer.node, [down, up, both])
    for node in (down, up, both):
        node.outputs[0].name, node.outputs[0].type = names.free(f"{y.name}.thin"), y.type
    return str(thin[0].name), str(thin[1].name)


def folded(model: ir.Model, module: nn.Module, pairs: dict[str, tuple[str, str]]) -> ir.Model:
    """Return the model with the thin products added to its weights."""
    result = model.clone()
    for name, (a, b) in pairs.items():
        value = result.graph.initializers[name]
        with torch.no_grad():
            change = (module.get_parameter(a) @ module.get_parameter(b)).numpy()
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() + change, name=name)
    return result


def kept_bytes(module: nn.Module, run: Callable[[], Any]) -> int:
    """Return how many bytes a run keeps for its backward pass, beside the module's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in own_tensors(module)}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(found.values())


def own_tensors(module: nn.Module) -> Iterable[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
