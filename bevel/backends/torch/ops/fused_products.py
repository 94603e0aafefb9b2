"""Products that ONNX Runtime fuses with what follows them: a bias, an activation, an addend, a transposition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.convolution import conv, conv_transpose
from bevel.backends.torch.ops.integer_products import centred
from bevel.backends.torch.ops.linear import gemm
from bevel.backends.torch.ops.pooling import max_pool
from bevel.backends.torch.ops.quantized import dynamic_quantize_linear
from bevel.backends.torch.table import Ints, lower

MICROSOFT: Final = "com.microsoft"
ACTIVATIONS: Final[Mapping[str, Callable[..., Tensor]]] = {
    "": lambda x: x,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": lambda x, slope=0.01: F.leaky_relu(x, slope),
    "Clip": lambda x, low, high: x.clamp(low, high),
    "HardSigmoid": lambda x, slope, offset: (slope * x + offset).clamp(0, 1),
}


def _unknown_activation(attributes: Mapping[str, Any]) -> str:
    name = attributes.get("activation", "")
    return "" if name in ACTIVATIONS else f"its activation is {name}"


@lower("FusedMatMul", domain=MICROSOFT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Multiply matrices, whose rows may come before their batch axes, and which may be transposed."""
    product = _turned(a, transA, transBatchA) @ _turned(b, transB, transBatchB)
    return product if alpha == 1 else alpha * product


def _turned(x: Tensor, transposed: int, batch: int) -> Tensor:
    """Return `... rows columns`: with its batch axes transposed, an operand is `rows ... columns`."""
    if batch and x.dim() > 2:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if transposed and x.dim() > 1 else x


@lower("TransposeMatMul", domain=MICROSOFT)
def transpose_matmul(a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    """Multiply matrices that may be transposed."""
    return fused_matmul(a, b, alpha=alpha, transA=transA, transB=transB)


@lower("FusedGemm", domain=MICROSOFT, refuses=_unknown_activation)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Multiply matrices, add a bias, and apply an activation."""
    product = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    given = (activation_alpha, activation_beta, activation_gamma)
    return ACTIVATIONS[activation](product, *[number for number in given if number is not None])


@lower("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply matrices, add a bias, and apply the approximated activation."""
    product = x @ weight
    return F.gelu(product if bias is None else product + bias, approximate="tanh")


@lower("FusedConv", domain=MICROSOFT, refuses=_unknown_activation)
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Slide filters, add a residual, and apply an activation."""
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return ACTIVATIONS[activation](y if z is None else y + z, *activation_params)


@lower("NhwcConv", "NhwcFusedConv", domain=MICROSOFT, refuses=_unknown_activation)
def channels_last_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Slide filters over entries whose channels come last."""
    x = x.movedim(-1, 1)
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides).movedim(1, -1)
    return ACTIVATIONS[activation](y if z is None else y + z, *activation_params)


@lower("NhwcMaxPool", domain=MICROSOFT)
def channels_last_max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int],
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Return the largest entry of each window of bytes whose channels come last."""
    largest = max_pool(
        x.movedim(-1, 1),
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return largest[0].movedim(1, -1)


@lower("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def conv_transpose_with_pads(
    x: Tensor,
    w: Tensor,
    pads: Ints | None = None,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Spread entries by filters, and crop as an operand says."""
    return conv_transpose(
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        output_padding=output_padding,
        pads=pads or (),
        strides=strides,
    )


@lower("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply matrices of integers exactly, scale the result back and add a bias."""
    total = centred(a, a_zero_point) @ centred(b, b_zero_point)
    product = total.to(a_scale.dtype) * (a_scale * b_scale)
    return product if bias is None else product + bias


@lower("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Round the left matrix to bytes by its extremes, and multiply with integers."""
    rounded, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(rounded, b, scale, b_scale, zero, b_zero_point, bias)
