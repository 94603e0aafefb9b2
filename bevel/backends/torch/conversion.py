"""From a model to a module: hold its tensors, write its graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from bevel.backends.torch.module import GraphModule
from bevel.backends.torch.nodes import strings_code
from bevel.backends.torch.parameters import Parameters, hold, is_trained, place_of
from bevel.backends.torch.source import Writer
from bevel.backends.torch.types import to_tensor, torch_type
from bevel.ir.canonical import canonicalize
from bevel.ir.provenance import Origin, Provenance, Transform, origin, provenance


def to_torch(model: ir.Model) -> GraphModule:
    """Return a trainable module that computes what the model computes, in evaluation mode as the model does.

    Weights become parameters and everything else buffers, under the names of the module that the model came from, or
    else of its initializers, each with memory of its own. In training mode BatchNormalization and Dropout behave as in
    torch. The module can be moved, converted, compiled, exported, copied and pickled; `print(module.code)` shows what
    it runs.

    Raises `UnsupportedModel`, which names the node, where an operator has no torch function.
    """
    model = model.clone()
    canonicalize(model)
    held = _Tensors(model)
    writer = Writer(held.read, held.hold_constant, model.opset_imports, *held.main())
    source = writer.write(model.graph)
    return GraphModule(source, held.root).eval()


class _Tensors:
    """The tree of parameters and buffers, which grows as the graph is written."""

    def __init__(self, model: ir.Model) -> None:
        self.root = Parameters()
        self._codes: dict[ir.Value, str] = {}
        self._named: dict[tuple[str, ...], tuple[str, np.ndarray]] = {}
        self._values = [value for graph in model.graphs() for value in graph.initializers.values()]
        self._from_module = any(provenance(value) is not None for value in self._values)
        self._hold_all(origin(model))

    def _hold_all(self, module: Origin | None) -> None:
        """Hold what is trained and what the original module names, in that module's order, or else the graph's."""
        names = module.names if module else ()
        for name in names:
            place_of(self.root, name)
        rank = {name: place for place, name in enumerate(names)}
        trained = [value for value in self._values if provenance(value) is not None or self._is_trained(value)]
        steps = [(rank.get(first_name(value), len(rank)), partial(self.read, value)) for value in trained]
        for name, (trainable, tensor) in (module.unused if module else {}).items():
            steps.append((rank[name], partial(self._hold_unused, name, tensor, trainable)))
        for _, step in sorted(steps, key=itemgetter(0)):
            step()

    def _hold_unused(self, name: str, tensor: ir.TensorProtocol, trainable: bool) -> str:
        return hold(self.root, name, to_tensor(tensor.numpy(), tensor.dtype), trained=trainable)

    def read(self, value: ir.Value) -> str:
        """Return the code that reads an initializer, which is held from now on."""
        if value not in self._codes:
            source = provenance(value)
            self._codes[value] = self._hold(value) if source is None else self._hold_as(value, source)
        return self._codes[value]

    def hold_constant(self, name: str, tensor: ir.TensorProtocol) -> str:
        """Hold a tensor of an attribute, and return the code that reads it."""
        if tensor.dtype is ir.DataType.STRING:
            return strings_code(tensor)
        return self._constant(name.replace(".", "_"), tensor)

    def main(self) -> tuple[torch.dtype | None, str | None]:
        """Return the type that most parameters have, and the code of one of them."""
        sizes: dict[ir.DataType, int] = {}
        trained = [value for value in self._values if self._is_trained(value)]
        for value in trained:
            assert value.dtype is not None and value.const_value is not None
            sizes[value.dtype] = sizes.get(value.dtype, 0) + value.const_value.size
        if not sizes:
            return None, None
        main = max(sizes, key=lambda kind: sizes[kind])
        return torch_type(main), self.read(next(value for value in trained if value.dtype is main))

    def _is_trained(self, value: ir.Value) -> bool:
        return is_trained(value, from_module=self._from_module)

    def _hold(self, value: ir.Value) -> str:
        tensor = value.const_value
        assert tensor is not None and value.name
        if tensor.dtype is ir.DataType.STRING:
            return strings_code(tensor)
        if self._is_trained(value):
            return hold(self.root, value.name, to_tensor(tensor.numpy(), tensor.dtype), trained=True)
        return self._constant(value.name, tensor)

    def _constant(self, name: str, tensor: ir.TensorProtocol) -> str:
        """Hold a constant, outside the `state_dict` where that is to be the original module's."""
        content = to_tensor(tensor.numpy(), tensor.dtype)
        return hold(self.root, name, content, trained=False, persistent=not self._from_module)

    def _hold_as(self, value: ir.Value, source: Provenance) -> str:
        """Hold an initializer as the parameter it came from, which several share as long as they are equal."""
        assert value.const_value is not None
        array = source.invert(value.const_value.numpy())
        if source.names in self._named:
            code, first = self._named[source.names]
            if not np.array_equal(first, array):
                return self._hold(value)
        else:
            code = self._register(source, array)
            self._named[source.names] = code, array
        return code + _steps(source.transforms, value.const_value.dtype)

    def _register(self, source: Provenance, array: np.ndarray) -> str:
        """Register one tensor under every name that it has."""
        tensor: Tensor = to_tensor(array)
        tensor = nn.Parameter(tensor) if source.trainable and tensor.is_floating_point() else tensor
        codes = [hold(self.root, name, tensor, trained=isinstance(tensor, nn.Parameter)) for name in source.names]
        return codes[0]


def _steps(transforms: Sequence[Transform], result: ir.DataType) -> str:
    """Return the code of the steps from a parameter to its initializer, whose type is `result`."""
    code = ""
    for place, step in enumerate(transforms):
        numbers = ", ".join(map(str, step.numbers))
        if step.kind == "transpose":
            code += ".t()" if step.numbers == (1, 0) else f".permute({numbers})"
        elif step.kind == "unsqueeze":
            code += "".join(f".unsqueeze({axis})" for axis in sorted(step.numbers))
        elif step.kind == "squeeze":
            code += f".squeeze(({numbers},))"
        else:
            later = [other.numbers[0] for other in transforms[place + 1 :] if other.kind == "cast"]
            code += f".to({torch_type(later[0] if later else result)})"
    return code


def first_name(value: ir.Value) -> str:
    """Return the first name that an initializer has in the module that it came from, or its own."""
    source = provenance(value)
    return source.names[0] if source else str(value.name)
