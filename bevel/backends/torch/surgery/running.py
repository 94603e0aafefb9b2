"""Running a module beside a reference: on the caller's inputs or made-up ones, and saying how far apart they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bevel.backends.onnxruntime import Level, Session
from bevel.backends.torch.running import KERNELS_RTOL
from bevel.backends.torch.state import device_of, modes_kept
from bevel.backends.torch.types import to_array, to_tensor
from bevel.errors import EditRefused, UsageError

ROUNDINGS: Final = 4
"""Half-precision kernels compute in float32 and round at every node; two such roundings a side differ by 4 units."""
HALF_UNIT: Final = 2.0**-8
"""The unit of bfloat16, the coarser of the two."""

Examples: TypeAlias = Tensor | Mapping[str, Any] | Sequence[Any]
Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a module, and what it has to return: flat, its tensors only."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    expected: tuple[Array, ...] = ()


def call_of(examples: Examples) -> Call:
    """Read example inputs: a tensor, positional arguments, keyword arguments, or a pair of both."""
    if isinstance(examples, Tensor):
        return Call((examples,), {})
    if isinstance(examples, Mapping):
        return Call((), dict(examples))
    if len(examples) == 2 and isinstance(examples[0], list | tuple) and isinstance(examples[1], Mapping):
        return Call(tuple(examples[0]), dict(examples[1]))
    return Call(tuple(examples), {})


def call_of_feed(module: nn.Module, feed: Mapping[str, Array]) -> Call:
    """Turn named inputs of a graph into arguments: by name where `forward` has such parameters, else in order."""
    tensors = {name: to_tensor(np.asarray(array)).to(device_of(module)) for name, array in feed.items()}
    names = inspect.signature(module.forward).parameters
    return Call((), tensors) if tensors.keys() <= names.keys() else Call(tuple(tensors.values()), {})


def answers(model: ir.Model, module: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """Return the calls with what an ONNX graph answers to them."""
    with Session(model, level=Level.AS_WRITTEN) as session:
        return [Call(c.args, c.kwargs, tuple(session.run(_feed(model, module, c)).values())) for c in calls]


def _feed(model: ir.Model, module: nn.Module, call: Call) -> dict[str, Array]:
    """Pair the graph's inputs with the tensors of a call, in the order of the forward's parameters."""
    bound = inspect.signature(module.forward).bind(*call.args, **call.kwargs).arguments
    arrays = [to_array(leaf) for leaf in _pytree.tree_leaves(bound) if isinstance(leaf, Tensor)]
    names = [str(value.name) for value in model.graph.inputs]
    if len(arrays) != len(names):
        raise UsageError(
            f"example_inputs hold {len(arrays)} tensors, the model takes {len(names)}: {', '.join(names)}",
            remedy="give what the model was loaded with",
        )
    return dict(zip(names, arrays, strict=True))


def outputs(module: nn.Module, call: Call) -> tuple[Array, ...]:
    """Run a module in evaluation mode and return the tensors of its answer; modes and gradients stay as they were."""
    with modes_kept(module), torch.no_grad():
        result = module.eval()(*call.args, **call.kwargs)
    return tuple(to_array(leaf) for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor))


def error(module: nn.Module, calls: Sequence[Call]) -> float:
    """Return the largest relative error of a module's answers, over `limit`; whatever its forward raises is raised."""
    inside = _unit_inside(module)
    return max(_distance(call.expected, outputs(module, call), inside) for call in calls)


def are_constant(calls: Sequence[Call]) -> bool:
    """Say whether all expected outputs hold one number each, so that hardly any error could show."""
    return all(array.size == 0 or bool((array == array.flat[0]).all()) for call in calls for array in call.expected)


def _distance(expected: Sequence[Array], found: Sequence[Array], inside: float) -> float:
    """Return `max |difference| / max |expected|` in units of the tolerance of the coarsest type, at least.

    That is the output's own, or one of half precision `inside` the module.
    """
    if len(expected) != len(found):
        raise EditRefused(
            f"it returns {len(found)} tensors, the model {len(expected)}",
            where="the module",
            remedy="load and apply with the same arguments (use_cache=False, return_dict, ...)",
        )
    return max((_apart(*pair, inside) for pair in zip(expected, found, strict=True)), default=0.0)


def _apart(expected: Array, found: Array, inside: float) -> float:
    if expected.shape != found.shape:
        return np.inf
    if not expected.size:
        return 0.0
    left, right = (
        np.asarray(array, np.complex128 if array.dtype.kind == "c" else np.float64) for array in (expected, found)
    )
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    finite = np.abs(left[np.isfinite(left)])
    largest = float(finite.max()) if finite.size else 0.0
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(left - right)).max() / max(largest, np.finfo(np.float32).tiny)
    unit = max(_unit(expected), inside)
    return float("inf") if np.isnan(apart) else float(apart * KERNELS_RTOL / max(KERNELS_RTOL, ROUNDINGS * unit))


def _unit(array: Array) -> float:
    return HALF_UNIT if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else 0.0


def _unit_inside(module: nn.Module) -> float:
    tensors = chain(module.parameters(), module.buffers())
    return HALF_UNIT if any(tensor.is_floating_point() and tensor.itemsize == 2 for tensor in tensors) else 0.0


FORWARD_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
"""What a forward raises that meets sizes it does not expect."""

Check: TypeAlias = Callable[[], float]
