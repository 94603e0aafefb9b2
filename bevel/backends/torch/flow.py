"""Synaptic flow: a network whose weights and inputs are all positive, so that nothing cancels.

Source: Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving synaptic flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bevel.backends.torch.answers import Reading

if TYPE_CHECKING:
    from bevel.backends.torch.differentiable import Differentiable


@contextmanager
def positive(network: Differentiable) -> Iterator[None]:
    """Give a network the absolute values of its weights; normalizations only scale while this lasts.

    A normalization that subtracts and divides by what it is given would conserve no flow: of all that it passes on,
    nothing depends on how much comes in.
    """
    with torch.no_grad():
        for weight in network.weights:
            weight.abs_()
    with _Scaling():
        yield


def summed(output: Tensor, kind: Reading) -> Tensor:
    """Return the sum of an output."""
    return output.sum()


class _Scaling(TorchFunctionMode):
    """Has normalizations multiply by their gain, and batch normalizations divide by the deviation they hold."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        chosen: Callable[..., Any] = _SCALINGS.get(func, func)
        return chosen(*args, **(kwargs or {}))


def _batch(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    y = x if var is None else x * _along(torch.rsqrt(var + eps), x)
    return _scaled(y, weight, bias)


def _instance(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
    return _scaled(x, weight, bias)


def _group(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    return _scaled(x, weight, bias)


def _last(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    y = x if weight is None else x * weight
    return y if bias is None else y + bias


def _root(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return x if weight is None else x * weight


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = x if weight is None else x * _along(weight, x)
    return y if bias is None else y + _along(bias, x)


def _along(vector: Tensor, x: Tensor) -> Tensor:
    """Return a vector over the channels, which are axis 1."""
    return vector.view(-1, *[1] * (x.dim() - 2))


_SCALINGS: Final[Mapping[Callable[..., Any], Callable[..., Tensor]]] = {
    F.batch_norm: _batch,
    torch.instance_norm: _instance,
    F.group_norm: _group,
    F.layer_norm: _last,
    F.rms_norm: _root,
}
