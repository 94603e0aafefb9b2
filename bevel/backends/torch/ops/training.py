"""One step of an optimizer, as an operator: weights, gradients and running statistics in, the new ones out.

Any number of weights is updated at once: all weights come first, then all gradients, then all of each statistic.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from bevel.backends.torch.table import lower

DOMAIN: Final = "ai.onnx.preview.training"


@lower("Adagrad", domain=DOMAIN)
def adagrad_step(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Tensor, ...]:
    """Divide the rate of each entry by the root of its squared gradients so far."""
    faded = rate / (1 + step * decay_factor)
    weights, squares = [], []
    for x, slope, total in _grouped(tensors, 3):
        slope = slope + norm_coefficient * x
        total = total + slope * slope
        weights.append((x - faded * slope / (total.sqrt() + epsilon)).to(x.dtype))
        squares.append(total)
    return (*weights, *squares)


@lower("Adam", domain=DOMAIN)
def adam_step(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Tensor, ...]:
    """Follow a running mean of the gradient, divided by the root of that of its square."""
    count = step.to(rate.dtype)
    corrected = rate * (1 - beta**count).sqrt() / (1 - alpha**count)
    adjusted = torch.where(step > 0, corrected, rate)
    weights, means, squares = [], [], []
    for x, slope, mean, square in _grouped(tensors, 4):
        slope = slope + norm_coefficient * x
        mean = alpha * mean + (1 - alpha) * slope
        square = beta * square + (1 - beta) * slope * slope
        moved = x - adjusted * mean / (square.sqrt() + epsilon)
        weights.append(((1 - norm_coefficient_post) * moved).to(x.dtype))
        means.append(mean)
        squares.append(square)
    return (*weights, *means, *squares)


@lower("Momentum", domain=DOMAIN)
def momentum_step(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Tensor, ...]:
    """Follow a fading sum of gradients; Nesterov's looks one step ahead."""
    weights, moments = [], []
    share = torch.where(step > 0, beta, 1.0).to(rate.dtype)
    for x, slope, moment in _grouped(tensors, 3):
        slope = slope + norm_coefficient * x
        moment = alpha * moment + share * slope
        direction = slope + alpha * moment if mode == "nesterov" else moment
        weights.append((x - rate * direction).to(x.dtype))
        moments.append(moment)
    return (*weights, *moments)


def _grouped(tensors: tuple[Tensor, ...], kinds: int) -> list[tuple[Tensor, ...]]:
    """Return what belongs to each weight."""
    count = len(tensors) // kinds
    return list(zip(*(tensors[kind * count : (kind + 1) * count] for kind in range(kinds)), strict=True))
