"""Normalizations: over the batch, over channels and groups of them, over last axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.table import DType, lower
from bevel.errors import UnsupportedModel


def _refuse_old_training(attributes: Mapping[str, Any]) -> str:
    return "" if attributes.get("is_test", 0) else "is_test=0: the statistics of every batch, as of operator set 6"


@lower("BatchNormalization", until=6, refuses=_refuse_old_training)
def batch_normalization_6(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    consumed_inputs: Sequence[int] = (),
    epsilon: float = 1e-5,
    is_test: int = 0,
    momentum: float = 0.9,
    spatial: int = 1,
    training: bool = False,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Normalize channels by running statistics."""
    return batch_normalization_9(
        x, scale, b, mean, var, epsilon=epsilon, momentum=momentum, spatial=spatial, training=training, outputs=outputs
    )


@lower("BatchNormalization", since=7, until=13)
def batch_normalization_9(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training: bool = False,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Normalize channels by running statistics; if not `spatial`, every position of them by its own."""
    if outputs > 1:
        raise UnsupportedModel(
            f"BatchNormalization with {outputs} outputs, whose statistics operator sets before 14 leave open",
            remedy="convert the model to operator set 14 or later",
        )
    if spatial:
        return (_normalize_batch(x, scale, b, mean, var, epsilon, momentum, training),)
    y = _normalize_batch(
        x.flatten(1), scale.view(-1), b.view(-1), mean.view(-1), var.view(-1), epsilon, momentum, training
    )
    return (y.view(x.shape),)


@lower("BatchNormalization", since=14)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    training: bool = False,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Normalize channels by running statistics, or by those of the batch, of which the running ones take a share.

    A graph made for training (`training_mode`) returns new running statistics. One made for inference takes those of
    the batch while its module is trained, and then updates its buffers as `torch.nn.BatchNorm2d` does.
    """
    if not training_mode:
        return (_normalize_batch(x, scale, b, mean, var, epsilon, momentum, training),)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [axis for axis in range(x.dim()) if axis != 1] if x.dim() > 1 else [0]
    batch_var, batch_mean = torch.var_mean(wide, axes, correction=0)
    y = torch.batch_norm(
        wide if x.dim() > 1 else wide.unsqueeze(1),
        scale.to(wide.dtype),
        b.to(wide.dtype),
        None,
        None,
        True,
        0.0,
        epsilon,
        torch.backends.cudnn.enabled,
    )
    running_mean = mean * momentum + batch_mean.to(mean.dtype) * (1 - momentum)
    running_var = var * momentum + batch_var.to(var.dtype) * (1 - momentum)
    return (y.to(x.dtype).view(x.shape), running_mean, running_var)[:outputs]


def _normalize_batch(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    epsilon: float,
    momentum: float,
    training: bool,
) -> Tensor:
    """Normalize axis 1 as torch does, in the widest of the operands' types."""
    wide = x.dtype
    for operand in (scale, b, mean, var):
        wide = torch.promote_types(wide, operand.dtype)
    running = mean.to(wide), var.to(wide)
    rows = (x if x.dim() > 1 else x.unsqueeze(1)).to(wide)
    # A graph holds 1 - momentum of torch as float32, seven digits of which are meant.
    y = F.batch_norm(rows, *running, scale.to(wide), b.to(wide), training, round(1 - momentum, 7), epsilon)
    if training and wide != mean.dtype:
        mean.copy_(running[0].detach())
    if training and wide != var.dtype:
        var.copy_(running[1].detach())
    return y.to(x.dtype).view(x.shape)


@lower("InstanceNormalization")
def instance_normalization(
    x: Tensor, scale: Tensor, b: Tensor, *, consumed_inputs: Sequence[int] = (), epsilon: float = 1e-5
) -> Tensor:
    """Normalize every channel of every instance by its own statistics."""
    return torch.instance_norm(x, scale, b, None, None, True, 0.0, epsilon, torch.backends.cudnn.enabled)


@lower("GroupNormalization", until=20)
def group_normalization_18(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5, num_groups: int) -> Tensor:
    """Normalize every group of channels; scale and bias are one number a group."""
    channels = x.shape[1] // num_groups
    scale, b = scale.repeat_interleave(channels), b.repeat_interleave(channels)
    return F.group_norm(x, num_groups, scale, b, epsilon)


@lower("GroupNormalization", since=21)
def group_normalization(
    x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5, num_groups: int, stash_type: DType = torch.float32
) -> Tensor:
    """Normalize every group of channels."""
    if _is_exact(x, stash_type):
        return F.group_norm(x, num_groups, scale, b, epsilon)
    shape = [-1, *[1] * (x.dim() - 2)]
    normal = F.group_norm(x.to(stash_type), num_groups, eps=epsilon).to(x.dtype)
    return normal * scale.view(shape) + b.view(shape)


@lower("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: DType = torch.float32,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Normalize the axes from `axis` on, and return the mean and the inverse standard deviation as well."""
    shape = x.shape[axis:]
    if _is_exact(x, stash_type) and scale.shape == shape and (b is None or b.shape == shape):
        y = F.layer_norm(x, shape, scale, b, epsilon)
    else:
        exact = x if _is_exact(x, stash_type) else x.to(stash_type)
        y = F.layer_norm(exact, shape, eps=epsilon).to(x.dtype) * scale
        y = y if b is None else y + b
    if outputs == 1:
        return (y,)
    var, mean = torch.var_mean(x.to(stash_type), list(range(-len(shape), 0)), correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(var + epsilon))[:outputs]


@lower("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: DType = torch.float32
) -> Tensor:
    """Divide by the root of the mean square over the axes from `axis` on."""
    shape = x.shape[axis:]
    if _is_exact(x, stash_type) and scale.dtype == x.dtype and scale.shape == shape:
        return F.rms_norm(x, shape, scale, epsilon)
    exact = x if _is_exact(x, stash_type) else x.to(stash_type)
    return F.rms_norm(exact, shape, eps=epsilon).to(x.dtype).to(scale.dtype) * scale


def _is_exact(x: Tensor, stash_type: torch.dtype) -> bool:
    """Say whether torch's kernels, which compute in float32 at least, are as precise as asked for."""
    return stash_type is torch.float32 or stash_type is x.dtype


@lower("LRN")
def local_response_normalization(
    x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Tensor:
    """Divide by a power of the mean square of neighbouring channels."""
    squares = x.square().flatten(2).unsqueeze(1)
    # Of an even number of channels the odd one is after the channel; torch's own function takes the one before.
    squares = F.pad(squares, [0, 0, (size - 1) // 2, size // 2])
    mean = F.avg_pool2d(squares, (size, 1), 1).view(x.shape)
    return x / (bias + alpha * mean) ** beta


@lower("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the p-norm along an axis; where all entries are zero, they stay so."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


@lower("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Subtract the mean and divide by the standard deviation."""
    var, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / (var.sqrt() + 1e-9)
