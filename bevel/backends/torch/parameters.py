"""What of a model is trained: which initializers become parameters, which buffers, and under which names."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Final

import onnx_ir as ir
from torch import Tensor, nn

from bevel.backends.torch.table import FLOATS
from bevel.ir.provenance import is_learnt

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


def is_trained(value: ir.Value, *, from_module: bool) -> bool:
    """Say whether an initializer is a parameter.

    Where it came from decides, or what a pass says of what it made; what has no origin in a model that came from a
    module is a constant. In other models every tensor of floats is a parameter, but single numbers and what only states
    something (`GIVEN`).
    """
    tensor, learnt = value.const_value, is_learnt(value)
    assert tensor is not None
    if tensor.dtype not in FLOATS:
        return False
    if learnt is not None or from_module:
        return bool(learnt)
    uses = [(use.node.domain, use.node.op_type, use.idx) for use in value.uses()]
    return tensor.size > 1 and any(index not in GIVEN.get((domain, kind), ()) for domain, kind, index in uses)


def hold(root: nn.Module, name: str, tensor: Tensor, *, trained: bool, persistent: bool = True) -> str:
    """Register a tensor under a dotted name, in modules made on the way, and return the code that reads it.

    A tensor that is not trained is a buffer; a persistent one is part of the `state_dict`.
    """
    place, code, last = place_of(root, name)
    last = _free(place, last)
    if trained:
        place.register_parameter(last, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
    else:
        place.register_buffer(last, tensor, persistent=persistent)
    return _access(code, last)


def place_of(root: nn.Module, name: str) -> tuple[nn.Module, str, str]:
    """Return the module that holds a dotted name, which is made if need be, the code that reads it, and the last part.

    The name is changed as little as needed where it cannot be had: empty parts, parts that a module already has.
    """
    *parts, last = [part or "_" for part in name.split(".")]
    place, code = root, "self"
    for part in parts:
        child = place._modules.get(part)
        if child is None:
            part = _free(place, part)
            child = Parameters()
            place.add_module(part, child)
        place, code = child, _access(code, part)
    return place, code, last


def _free(place: nn.Module, part: str) -> str:
    while hasattr(place, part) or part in place._modules:
        part = f"{part}_"
    return part


def _access(code: str, part: str) -> str:
    if part.isdecimal() and str(int(part)) == part:
        return f"{code}[{part}]"
    usable = part.isidentifier() and not keyword.iskeyword(part)
    return f"{code}.{part}" if usable else f"getattr({code}, {part!r})"
