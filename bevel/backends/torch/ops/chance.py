"""Operators of chance. Where a seed is given, uniform numbers are those that ONNX's reference draws with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevel.backends.torch.table import DType, lower


def uniform(sizes: Sequence[int], seed: float | None, device: torch.device) -> Tensor:
    """Return float64 numbers from 0 to 1.

    Torch and numpy run the same generator (MT19937) on the host: numpy joins 27 and 26 bits of two of its outputs.
    """
    if seed is None:
        return torch.rand(sizes, dtype=torch.float64, device=device)
    source = torch.Generator().manual_seed(int(seed))
    bits = torch.empty(sizes, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None, generator=source)
    high, low = (bits >> 37) & 0x7FFFFFF, (bits >> 6) & 0x3FFFFFF
    return ((high << 26) + low).to(device).to(torch.float64) / (1 << 53)


def _normal(sizes: Sequence[int], seed: float | None, device: torch.device) -> Tensor:
    """Return float32 numbers of the normal distribution."""
    source = None if seed is None else torch.Generator(device).manual_seed(int(seed))
    return torch.randn(sizes, generator=source, device=device)


@lower("RandomNormal")
def random_normal(
    *,
    shape: list[int],
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    dtype: DType = torch.float32,
    device: torch.device,
) -> Tensor:
    """Return numbers of the normal distribution."""
    return (_normal(shape, seed, device) * scale + mean).to(dtype)


@lower("RandomNormalLike")
def random_normal_like(
    x: Tensor, *, mean: float = 0.0, scale: float = 1.0, seed: float | None = None, dtype: DType | None = None
) -> Tensor:
    """Return numbers of the normal distribution in the shape of x."""
    return (_normal(x.shape, seed, x.device) * scale + mean).to(dtype or x.dtype)


@lower("RandomUniform")
def random_uniform(
    *,
    shape: list[int],
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    dtype: DType = torch.float32,
    device: torch.device,
) -> Tensor:
    """Return numbers that are equally likely from `low` to `high`."""
    return (uniform(shape, seed, device) * (high - low) + low).to(dtype)


@lower("RandomUniformLike")
def random_uniform_like(
    x: Tensor, *, low: float = 0.0, high: float = 1.0, seed: float | None = None, dtype: DType | None = None
) -> Tensor:
    """Return numbers that are equally likely from `low` to `high`, in the shape of x."""
    return (uniform(x.shape, seed, x.device) * (high - low) + low).to(dtype or x.dtype)


@lower("Multinomial")
def multinomial(x: Tensor, *, sample_size: int = 1, seed: float | None = None, dtype: DType = torch.int32) -> Tensor:
    """Return classes drawn for each row of logarithms of probabilities."""
    source = None if seed is None else torch.Generator(x.device).manual_seed(int(seed))
    return torch.multinomial(x.softmax(-1), sample_size, replacement=True, generator=source).to(dtype)


@lower("Bernoulli")
def bernoulli(x: Tensor, *, seed: float | None = None, dtype: DType | None = None) -> Tensor:
    """Return 1 with the probabilities of x, else 0. Each is the outcome that takes the lower part of the unit range."""
    drawn = uniform(x.shape, seed, x.device)
    likely = x > 0.5
    rare = drawn > 1 - torch.where(likely, 1 - x, x).to(torch.float64)
    return (rare ^ likely).to(dtype or x.dtype)
