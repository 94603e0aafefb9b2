"""Steps of fine-tuning: AdamW, a schedule with warm-up, clipped gradients, mixed precision."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from bevel.backends.torch.state import device_of
from bevel.errors import UsageError, nearest

Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

SMALLEST_SCALE: Final = 2.0**-14
"""Of the loss in float16: where even losses scaled down to it overflow, no scale will do."""


@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises linearly over the first steps and falls to zero along half a cosine.

    >>> schedule = Schedule(lr=1.0, warmup=0.2, steps=10)
    >>> [round(schedule.at(step), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """

    lr: float
    warmup: float
    steps: int

    def at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))


class Updates:
    """Changes the trainable parameters of a module, a step at a time."""

    def __init__(
        self, module: nn.Module, schedule: Schedule, *, weight_decay: float, max_grad_norm: float, precision: Precision
    ) -> None:
        self.parameters = trainable(module)
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self._device = device_of(module)
        self._dtype = dtype_of(precision, self._device)
        self._optimizer = torch.optim.AdamW(decayed(self.parameters, weight_decay), lr=schedule.lr)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that modules run in."""
        return nullcontext() if self._dtype is torch.float32 else torch.autocast(self._device.type, self._dtype)

    def apply(self, loss: Tensor, step: int) -> bool:
        """Change the parameters by one step down the loss; do nothing and say so where gradients are not finite.

        In float16 gradients overflow now and then: such a step is left out, and the scale of the loss is halved.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.at(step)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        if not self._scaler.is_enabled() and not norm.isfinite():
            return False
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return not self._scaler.is_enabled() or self._scaler.get_scale() >= SMALLEST_SCALE

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the parameters."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters to train, each once however many names it has."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError("no parameter of it requires a gradient", where="student", remedy="student.requires_grad_()")
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            raise UsageError(
                f"parameter {name!r} is of type {parameter.dtype}, too coarse for small steps to be kept",
                where="student",
                remedy="train student.float(), with precision= for the arithmetic, and convert back afterwards",
            )
    return parameters


def decayed(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Cut parameters into matrices, which decay, and vectors (biases, scales of norms), which do not."""
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that matrix products are computed in."""
    if precision not in get_args(Precision):
        remedy = nearest(precision, get_args(Precision))
        raise UsageError(f"unknown precision {precision!r}", where="precision", remedy=remedy)
    if precision != "auto":
        named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return named[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
