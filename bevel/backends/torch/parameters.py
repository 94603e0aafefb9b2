"""What of a model is trained: which initializers become parameters, which buffers, and under which names."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir
import torch
from torch import Tensor, nn

from bevel.backends.torch.table import FLOATS
from bevel.backends.torch.types import to_tensor
from bevel.ir.provenance import provenance

# Inputs that a model states or measures rather than learns: running statistics, limits, sizes, quantization steps.
GIVEN: Final[Mapping[tuple[str, str], frozenset[int]]] = {
    ("", "BatchNormalization"): frozenset({3, 4}),
    ("", "Clip"): frozenset({1, 2}),
    ("", "CenterCropPad"): frozenset({1}),
    ("", "DequantizeLinear"): frozenset({0, 1, 2}),
    ("", "Dropout"): frozenset({1}),
    ("", "MelWeightMatrix"): frozenset({3, 4}),
    ("", "Pad"): frozenset({2}),
    ("", "QuantizeLinear"): frozenset({1, 2}),
    ("", "Range"): frozenset({0, 1, 2}),
    ("", "Resize"): frozenset({1, 2}),
    ("", "STFT"): frozenset({2}),
    ("", "Upsample"): frozenset({1}),
}


class Parameters(nn.Module):
    """A place in the tree of parameters: `encoder.layer.0.weight` is held by the one called `encoder.layer.0`.

    The parts of a name that are numbers are reached by index: `self.encoder.layer[0].weight`.
    """

    def __getitem__(self, index: int) -> nn.Module | Tensor:
        found: nn.Module | Tensor = getattr(self, str(index))
        return found


@dataclass(frozen=True)
class Slot:
    """Where a tensor is held: its name in the `state_dict`, and the code that reads it."""

    name: str
    code: str


def is_trained(value: ir.Value, *, from_module: bool) -> bool:
    """Say whether an initializer is a parameter.

    Where it came from decides; what has no origin in a model that came from a module is a constant. In other models
    every tensor of floats is a parameter, but single numbers and what only states something (`GIVEN`).
    """
    tensor, source = value.const_value, provenance(value)
    assert tensor is not None
    if tensor.dtype not in FLOATS:
        return False
    if source is not None or from_module:
        return source is not None and source.trainable
    uses = [(use.node.domain, use.node.op_type, use.idx) for use in value.uses()]
    return tensor.size > 1 and any(index not in GIVEN.get((domain, kind), ()) for domain, kind, index in uses)


def hold(root: nn.Module, name: str, tensor: Tensor, *, trained: bool, persistent: bool = True) -> Slot:
    """Register a tensor under a dotted name, in modules made on the way, and return where it is.

    A tensor that is not trained is a buffer; a persistent one is part of the `state_dict`.

    The name is changed as little as needed where it cannot be had: empty parts, parts that a module already has.
    """
    parts = [part or "_" for part in name.split(".")]
    place, code = root, "self"
    for part in parts[:-1]:
        child = place._modules.get(part)
        if child is None:
            part = _free(place, part)
            child = Parameters()
            place.add_module(part, child)
        place, code = child, _access(code, part)
    last = _free(place, parts[-1])
    if trained:
        place.register_parameter(last, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
    else:
        place.register_buffer(last, tensor, persistent=persistent)
    return Slot(".".join([*parts[:-1], last]), _access(code, last))


def tensors(values: Iterator[ir.Value]) -> Iterator[tuple[ir.Value, Tensor]]:
    """Read initializers one after the other, each into memory of its own."""
    for value in values:
        assert value.const_value is not None
        yield value, to_tensor(value.const_value.numpy(), value.const_value.dtype)


def main_type(module: nn.Module) -> torch.dtype | None:
    """Return the type that most of a module's parameters have."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda kind: sizes[kind], default=None)


def _free(place: nn.Module, part: str) -> str:
    while hasattr(place, part) or part in place._modules:
        part = f"{part}_"
    return part


def _access(code: str, part: str) -> str:
    if part.isdecimal() and str(int(part)) == part:
        return f"{code}[{part}]"
    usable = part.isidentifier() and not keyword.iskeyword(part)
    return f"{code}.{part}" if usable else f"getattr({code}, {part!r})"
