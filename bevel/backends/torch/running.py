"""Running converted modules: what their code calls beside the operators' functions, and a run on arrays."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from bevel.backends.torch.failures import explained
from bevel.backends.torch.state import device_of, modes_kept
from bevel.backends.torch.types import to_array, to_tensor
from bevel.errors import UnsupportedModel

if TYPE_CHECKING:
    from bevel.backends.torch.module import GraphModule

KERNELS_RTOL: Final = 1e-4
"""How far a module and its graph in ONNX Runtime may be apart, relative to an output's largest value.

Two libraries sum in other orders (1e-5 over the longest sums that are common) and approximate exp, tanh and erf by
other polynomials (1e-6 each); a deep network multiplies that by what its layers amplify, ten times is usual. A wrong
channel changes an output by a part of its size.
"""

UNTRIED: Final = "if ONNX Runtime takes these inputs, this is a bug in a torch function; verify=False converts anyway"


def collected(
    rounds: Sequence[Tensor], *, axis: int, kind: torch.dtype | None, rank: int | None, device: torch.device
) -> Tensor:
    """Stack what the rounds of a loop gave along a new axis; of no rounds, every size is zero."""
    if rounds:
        return torch.stack(list(rounds), axis)
    if rank is None or kind is None:
        raise UnsupportedModel("a loop without rounds gives a tensor of unknown rank or type")
    return torch.empty([0] * (rank + 1), dtype=kind, device=device)


def answer(module: GraphModule, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module on arrays by the graph's input names; return arrays by output name."""
    types = _types(module)
    results = _run(module, arguments_of(module, feed))
    return {name: _array(value, types[name]) for name, value in zip(module.outputs, results, strict=True)}


def arguments_of(module: GraphModule, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a module's `forward` is given for arrays by the graph's input names, where the module is."""
    types, device = _types(module), device_of(module)
    names = zip(module.inputs, module.arguments, strict=True)
    return {argument: _value(feed[name], types[name], device) for name, argument in names if name in feed}


def answer_exactly(module: GraphModule, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Run a copy of a module in double precision; return what it answers as `answer` does, rounded once, at the end."""
    types = _types(module)
    exact = copy.deepcopy(module).double().cpu()
    given = arguments_of(exact, feed)
    doubled = {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()}
    results = _run(exact, doubled)
    return {name: _array(value, types[name]) for name, value in zip(module.outputs, results, strict=True)}


def _types(module: GraphModule) -> dict[str, int]:
    """Return the element types of a graph's inputs and outputs by name."""
    return {port.name: port.element_type for port in module.ports}


def _run(module: GraphModule, arguments: Mapping[str, Any]) -> Sequence[Any]:
    """Run a module in evaluation mode, and return a sequence of its outputs.

    Raises `UnsupportedModel` with the line where torch raises something.
    """
    with modes_kept(module), torch.no_grad(), explained("does not run in torch", UNTRIED):
        results = module.eval()(**arguments)
    several: Sequence[Any] = results if len(module.outputs) != 1 else (results,)
    return several


def _value(value: Any, element_type: int, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_value(item, 0, device) for item in value]
    if value is None or value.dtype.kind in "OSUT":
        return None if value is None else value.astype(object)
    return to_tensor(value, element_type or None).to(device)


def _array(value: Any, element_type: int) -> Any:
    if isinstance(value, list):
        return [_array(item, 0) for item in value]
    return to_array(value, element_type or None) if isinstance(value, Tensor) else value
