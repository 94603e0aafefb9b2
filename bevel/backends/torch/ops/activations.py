"""The activation functions that recurrent operators name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.errors import UnsupportedModel, nearest

Activation: TypeAlias = Callable[[Tensor], Tensor]


def _affine(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * x + beta


def _scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, 0.0)


# With the defaults of what they take of `activation_alpha` and `activation_beta`; None: there is none.
_FUNCTIONS: Final[Mapping[str, tuple[Callable[..., Tensor], tuple[float | None, ...]]]] = {
    "sigmoid": (torch.sigmoid, ()),
    "tanh": (torch.tanh, ()),
    "relu": (torch.relu, ()),
    "softsign": (F.softsign, ()),
    "softplus": (F.softplus, ()),
    "affine": (_affine, (None, None)),
    "scaledtanh": (_scaled_tanh, (None, None)),
    "hardsigmoid": (_hard_sigmoid, (0.2, 0.5)),
    "leakyrelu": (F.leaky_relu, (0.01,)),
    "thresholdedrelu": (_thresholded_relu, (1.0,)),
    "elu": (F.elu, (1.0,)),
}


def activations_of(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], clip: float | None
) -> list[Activation]:
    """Return the functions of these names; those that have an alpha or beta take the next one that is left."""
    numbers = (iter(alphas), iter(betas))
    return [_clipped(_activation(name, *numbers), clip) for name in names]


def _activation(name: str, *numbers: Any) -> Activation:
    known = _FUNCTIONS.get(name.lower())
    if known is None:
        raise UnsupportedModel(f"activation {name!r}", remedy=nearest(name.lower(), _FUNCTIONS))
    function, defaults = known
    taken = tuple(next(rest, default) for rest, default in zip(numbers, defaults, strict=False))
    if None in taken:
        raise UnsupportedModel(f"activation {name!r} without its alpha and beta, which have no defaults")
    return partial(_with, function, taken) if taken else function


def _with(function: Callable[..., Tensor], numbers: tuple[Any, ...], x: Tensor) -> Tensor:
    return function(x, *numbers)


def _clipped(function: Activation, clip: float | None) -> Activation:
    if clip is None:
        return function
    return lambda x: function(x.clamp(-clip, clip))
