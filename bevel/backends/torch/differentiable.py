"""A model as a torch function of its weights, to be differentiated by each initializer apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from bevel.backends.torch.conversion import to_torch
from bevel.backends.torch.failures import explained
from bevel.backends.torch.module import GraphModule
from bevel.backends.torch.nodes import title
from bevel.backends.torch.parameters import is_trained
from bevel.backends.torch.running import arguments_of
from bevel.errors import UnsupportedModel
from bevel.ir.provenance import KEY, ORIGIN, Provenance, set_provenance

OTHERWISE: Final = "choose an importance without gradients, such as magnitude or wanda"
HALVES: Final = (torch.float16, torch.bfloat16)
COARSE_BITS: Final = 8
"""Numbers are quantized to types of at most so many bits."""


class Differentiable:
    """The module of a model, whose parameters stand for one initializer each.

    Half precision is computed as float32, and everything as float64 if `exact`.
    """

    def __init__(self, model: ir.Model, *, exact: bool = False) -> None:
        refuse_quantized(model)
        model = model.clone()
        names = _told_apart(model)
        self.module: GraphModule = to_torch(model)
        found = dict(self.module.named_parameters())
        self.keys = {name: key for key, name in names.items() if key in found}
        self.names = list(self.keys)
        self.weights = [found[key] for key in self.keys.values()]
        if not self.weights:
            raise UnsupportedModel("there is no weight to differentiate by", where="model", remedy=OTHERWISE)
        self.type = torch.float64 if exact else None
        if exact or any(weight.dtype in HALVES for weight in self.weights):
            self.type = self.type or torch.float32
            self.module.to(self.type)

    def run(self, feed: Mapping[str, Any], instead: Mapping[str, Tensor] | None = None) -> list[Any]:
        """Return the outputs as they depend on the weights, or on other tensors in place of some, by initializer."""
        arguments = {name: self._typed(value) for name, value in arguments_of(self.module, feed).items()}
        given = {self.keys[name]: self._typed(tensor) for name, tensor in (instead or {}).items()}
        with explained("does not run in torch", OTHERWISE), sdpa_kernel(SDPBackend.MATH):  # others differentiate once
            results = functional_call(self.module, given, (), arguments) if given else self.module(**arguments)
        return list(results) if len(self.module.outputs) != 1 else [results]

    def _typed(self, value: Any) -> Any:
        if self.type is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.to(self.type)

    def gradients(self, loss: Tensor, *, graph: bool = False) -> list[Tensor]:
        """Return the gradient by each weight, zero where the loss does not depend on one."""
        if not loss.requires_grad:
            return [torch.zeros_like(weight) for weight in self.weights]
        with explained("has no derivative in torch", OTHERWISE):
            found = torch.autograd.grad(loss, self.weights, create_graph=graph, materialize_grads=True)
        return list(found)

    def hessian_times(self, loss: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product of the loss's Hessian with a vector for each weight."""
        slopes = self.gradients(loss, graph=True)
        pairs = zip(slopes, vectors, strict=True)
        along = torch.stack([(slope * vector).sum() for slope, vector in pairs]).sum()
        return self.gradients(along)

    def named(self, tensors: Sequence[Tensor]) -> dict[str, np.ndarray[Any, Any]]:
        """Return tensors that belong to the weights as arrays, by the initializers' names."""
        return {name: tensor.detach().numpy() for name, tensor in zip(self.names, tensors, strict=True)}


def _told_apart(model: ir.Model) -> dict[str, str]:
    """Make a parameter of its own of every initializer that is learnt; return the initializers by parameter."""
    model.graph.meta.pop(ORIGIN, None)
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    for value in values:
        value.metadata_props.pop(KEY, None)
    learnt = {f"w{place}": value for place, value in enumerate(values) if is_trained(value, from_module=False)}
    for name, value in learnt.items():
        set_provenance(value, Provenance((name,), trainable=True))
    return {name: value.name or "" for name, value in learnt.items()}


def refuse_quantized(model: ir.Model) -> None:
    """Raise `UnsupportedModel` at the first node that quantizes what depends on weights: no gradient passes it."""
    depends = {value for graph in model.graphs() for value in graph.initializers.values()}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        taken = [value for value in node.inputs if value is not None and value in depends]
        given = node.outputs if taken else ()
        if any(map(_is_coarse, (*taken, *given))):
            raise UnsupportedModel("gradients do not pass what is quantized", where=title(node), remedy=OTHERWISE)
        depends.update(given)


def _is_coarse(value: ir.Value) -> bool:
    """Say whether a value has a type that numbers are quantized to."""
    kind = value.dtype
    if kind in (None, ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED):
        return False
    return kind.bitwidth <= COARSE_BITS
