"""The trained slices of a module whose other parameters are frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

Array: TypeAlias = np.ndarray[Any, Any]


def freeze_others(module: nn.Module, names: Iterable[str]) -> None:
    """Let the tensors of these names be trained, and no other."""
    module.requires_grad_(False)
    for name in names:
        owner, _, last = name.rpartition(".")
        place = module.get_submodule(owner)
        tensor = getattr(place, last)
        if not isinstance(tensor, nn.Parameter):  # a single number was taken for a constant
            delattr(place, last)
            place.register_parameter(last, nn.Parameter(tensor))
        getattr(place, last).requires_grad_(True)


def contents(module: nn.Module, names: Iterable[str]) -> dict[str, Array]:
    """Copy what the slices hold."""
    return {name: module.get_parameter(name).detach().cpu().numpy().copy() for name in names}


@torch.no_grad()
def fill(module: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Write contents into the slices, wherever and in whatever type they are."""
    for name, array in arrays.items():
        parameter: Tensor = module.get_parameter(name)
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))
