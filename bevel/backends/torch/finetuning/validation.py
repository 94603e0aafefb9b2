"""Validation during fine-tuning: what each evaluation gave, which was best, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from bevel.backends.torch.finetuning.chance import random_state_kept
from bevel.backends.torch.finetuning.weights import Weights, copied, restore, tensors
from bevel.backends.torch.state import modes_kept

Evaluate: TypeAlias = Callable[[nn.Module], float]


@dataclass
class Validation:
    """Scores a module, keeps a copy of its best weights, and counts evaluations without improvement."""

    evaluate: Evaluate | None
    greater_is_better: bool
    patience: int | None
    best: float = math.nan
    best_step: int = 0
    waited: int = 0
    weights: Weights = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        """Tell whether there was no improvement for as long as patience lasts."""
        return self.patience is not None and self.waited >= self.patience

    def judge(self, module: nn.Module, step: int) -> float | None:
        """Score the module after some steps, in eval mode; the training's random numbers stay as they were."""
        if self.evaluate is None:
            return None
        with modes_kept(module), random_state_kept(), torch.no_grad():
            module.eval()
            score = float(self.evaluate(module))
        self.waited += 1
        if self._better(score):
            self.best, self.best_step, self.waited = score, step, 0
            self.weights = copied(tensors(module))
        return score

    def finish(self, module: nn.Module) -> None:
        """Give the module its best weights."""
        restore(module, self.weights)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "weights": self.weights}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)

    def _better(self, score: float) -> bool:
        """Tell whether a score is the best so far; one that is no number never is."""
        if math.isnan(score) or math.isnan(self.best):
            return not math.isnan(score)
        return score > self.best if self.greater_is_better else score < self.best
