"""Activations, normalisations and small operators of ONNX Runtime, many of which read as those of ai.onnx do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.convolution import causal_conv
from bevel.backends.torch.ops.creation import range_of
from bevel.backends.torch.ops.dropout import dropout
from bevel.backends.torch.ops.indexing import gather_nd
from bevel.backends.torch.ops.layout import trilu
from bevel.backends.torch.ops.ordering import unique
from bevel.backends.torch.ops.slicing import pad
from bevel.backends.torch.table import Int, Ints, Number, lower

MICROSOFT: Final = "com.microsoft"

lower("Trilu", domain=MICROSOFT)(trilu)
lower("GatherND", domain=MICROSOFT)(gather_nd)
lower("Range", domain=MICROSOFT)(range_of)


@lower("Gelu", domain=MICROSOFT)
def gelu_exact(x: Tensor) -> Tensor:
    """Multiply each entry with the share of a normal distribution below it."""
    return F.gelu(x)


@lower("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Add a bias before the activation."""
    return F.gelu(x + bias)


@lower("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Add a bias, if there is one, before the activation, in which the normal distribution is approximated."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@lower("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """Multiply each entry with the sigmoid of a multiple of it."""
    return x * torch.sigmoid(alpha * x)


@lower("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Multiply the first half of the entries with the activation of the second."""
    kept, gate = (x + bias).chunk(2, -1)
    return kept * F.gelu(gate)


@lower("BiasAdd", domain=MICROSOFT)
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """Add a bias and a residual."""
    return x + bias + skip


@lower("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(x: Tensor, bias: Tensor, *, axis: int = 1, is_inner_broadcast: int) -> Tensor:
    """Add a bias that broadcasts, and normalise over all axes from one on."""
    scores = x + bias
    return scores.flatten(axis).softmax(-1).reshape(scores.shape)


@lower("BiasDropout", domain=MICROSOFT)
def bias_dropout(
    x: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    ratio: Number = 0.5,
    training_mode: Int = 0,
    *,
    seed: int | None = None,
    outputs: int,
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """Add a bias, drop entries in training mode, and add a residual."""
    kept, mask = dropout(x + bias, ratio, training_mode, seed=seed, outputs=outputs, training=training)
    return (kept if residual is None else kept + residual), mask


def root_mean_square(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """Divide by the root of the mean square over the last axis."""
    return F.rms_norm(x, x.shape[-1:], scale.reshape(-1), epsilon)


@lower("SimplifiedLayerNormalization")
@lower("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Divide by the root of the mean square over the axes from one on; its inverse is an output too."""
    shape = x.shape[axis:]
    y = F.rms_norm(x, shape, scale.reshape(shape), epsilon)
    if outputs == 1:
        return (y,)
    axes = list(range(-len(shape), 0))
    return y, torch.rsqrt(x.to(torch.float32).square().mean(axes, keepdim=True) + epsilon)


@lower("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Add a residual and a bias, and normalise over the last axis; the sum is an output too."""
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    if outputs == 1:
        return y, None, None, total
    variance, mean = torch.var_mean(total, -1, correction=0, keepdim=True)
    return y, mean, torch.rsqrt(variance + epsilon), total


@lower("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Add a residual and a bias, and divide by the root of the mean square; the sum is an output too."""
    total = x + skip if bias is None else x + skip + bias
    y = root_mean_square(total, gamma, epsilon)
    if outputs == 1:
        return y, None, None, total
    return y, None, torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon), total


def group_normalized(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, groups: int, activation: int, channels_last: int
) -> Tensor:
    """Normalise each group of channels over the group and its positions; an activation is the sigmoid unit."""
    first = x.movedim(-1, 1) if channels_last else x
    y = F.group_norm(first, groups, gamma.to(x.dtype), beta.to(x.dtype), epsilon)
    y = F.silu(y) if activation else y
    return y.movedim(1, -1) if channels_last else y


@lower("GroupNorm", domain=MICROSOFT)
def group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> Tensor:
    """Normalise each group of channels, which come last unless said otherwise."""
    return group_normalized(x, gamma, beta, epsilon, groups, activation, channels_last)


@lower("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    skip: Tensor,
    bias: Tensor | None = None,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Add a residual, which may be one for all positions, and a bias, and normalise; the sum is an output too."""
    if skip.dim() == 2:
        skip = skip[:, None, None]
    total = x + skip if bias is None else x + skip + bias
    return group_normalized(total, gamma, beta, epsilon, groups, activation, channels_last), total


@lower("Unique", domain=MICROSOFT)
def unique_as_met(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the different entries in the order in which they come, the place of each entry's, and their counts."""
    values, _, back, counts = unique(x, sorted=0)
    return values, back, counts


@lower("Pad", domain=MICROSOFT)
def pad_flat(x: Tensor, pads: Ints, value: Number | None = None, *, mode: str = "constant") -> Tensor:
    """Put entries in front of and behind each axis; the counts may come as a row."""
    counts: Any = pads[0] if isinstance(pads[0], list) else pads
    return pad(x, counts, value, mode=mode)


@lower("ExpandDims", domain=MICROSOFT)
def expand_dims(x: Tensor, axis: Int) -> Tensor:
    """Insert an axis of size one."""
    return x.unsqueeze(axis)


@lower("Inverse", domain=MICROSOFT)
def inverse(x: Tensor) -> Tensor:
    """Invert matrices."""
    result: Tensor = torch.linalg.inv(x)
    return result


@lower("CDist", domain=MICROSOFT)
def pairwise_distance(a: Tensor, b: Tensor, *, metric: str = "sqeuclidean") -> Tensor:
    """Return the distance of every row of one operand to every row of the other."""
    squares: Tensor = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
    return squares.sqrt() if metric == "euclidean" else squares


@lower("IsAllFinite", domain=MICROSOFT)
def is_all_finite(*tensors: Tensor, isinf_only: int = 0, isnan_only: int = 0) -> Tensor:
    """Say whether no entry of any operand is infinite or not-a-number, of which one may be let through."""
    bad = [x.isinf() if isinf_only else x.isnan() if isnan_only else ~x.isfinite() for x in tensors]
    return ~torch.stack([found.any() for found in bad]).any()


@lower("TorchEmbedding", domain=MICROSOFT)
def torch_embedding(
    weight: Tensor, indices: Tensor, padding_idx: Int | None = None, scale_grad_by_freq: Int | None = None
) -> Tensor:
    """Take rows of a table; a row for padding learns nothing."""
    return F.embedding(indices, weight, padding_idx, scale_grad_by_freq=bool(scale_grad_by_freq))


@lower("ComplexMul", domain=MICROSOFT)
def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply pairs of real and imaginary parts."""
    return torch.view_as_real(torch.view_as_complex(a) * torch.view_as_complex(b))


@lower("ComplexMulConj", domain=MICROSOFT)
def complex_product_of_conjugate(a: Tensor, b: Tensor) -> Tensor:
    """Multiply pairs of real and imaginary parts, of which the second are conjugated."""
    return torch.view_as_real(torch.view_as_complex(a) * torch.view_as_complex(b).conj())


_PLAIN_CONVOLUTION = {"ndim": 1, "channels_last": 0, "dilation": 1, "state_window": 0}


def _other_layouts(attributes: Mapping[str, Any]) -> str:
    other = [name for name, value in _PLAIN_CONVOLUTION.items() if attributes.get(name, value) != value]
    return f"its layout is another one ({', '.join(other)})" if other else ""


@lower("CausalConvWithState", domain=MICROSOFT, refuses=_other_layouts)
def causal_conv_of_runtime(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    *,
    activation: str = "none",
    ndim: int = 1,
    channels_last: int = 0,
    dilation: int = 1,
    state_window: int = 0,
) -> tuple[Tensor, Tensor]:
    """Convolve every channel with the positions before it, and return the last of them for the next call."""
    return causal_conv(x, weight, bias, past, activation=activation)
