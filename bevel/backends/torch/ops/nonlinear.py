"""Activation functions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.wide import UNSIGNED
from bevel.backends.torch.table import lower, write

write("Relu", "torch.relu({0})")
write("Sigmoid", "torch.sigmoid({0})")
write("Softplus", "torch.nn.functional.softplus({0})")
write("Softsign", "torch.nn.functional.softsign({0})")
write("HardSwish", "torch.nn.functional.hardswish({0})")
write("Mish", "torch.nn.functional.mish({0})")


@lower("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Return x where it is positive, else alpha * x."""
    return F.leaky_relu(x, alpha)


@lower("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Return x where it is not negative, else slope * x."""
    return x if x.dtype in UNSIGNED else torch.where(x < 0, slope * x, x)


@lower("PRelu", until=6)
def prelu_by_channel(x: Tensor, slope: Tensor) -> Tensor:
    """Return x where it is not negative, else slope * x; the slope is one number or one for each channel."""
    return F.prelu(x, slope.reshape(-1))


@lower("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x where it is positive, else alpha * (exp(x) - 1)."""
    return F.elu(x, alpha)


@lower("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x where it is positive, else alpha * (exp(x / alpha) - 1)."""
    return F.celu(x, alpha)


@lower("Selu", since=6)
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """Return gamma * elu(x, alpha)."""
    return gamma * F.elu(x, alpha)


@lower("Selu", until=5)
def selu_rounded(x: Tensor, *, alpha: float = 1.6732, gamma: float = 1.0507) -> Tensor:
    """Return gamma * elu(x, alpha) with the constants of the operator's first version."""
    return gamma * F.elu(x, alpha)


@lower("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Return x weighted by the normal distribution function, or by its approximation "tanh"."""
    return F.gelu(x, approximate=approximate)


@lower("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@lower("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Return alpha * x + beta limited to the range from 0 to 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


@lower("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x where it exceeds alpha, else zero."""
    return F.threshold(x, alpha, 0.0)


@lower("SwiGLU")
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return swish(a, alpha) * b."""
    return swish(a, alpha=alpha) * b
