"""The state of a module during fine-tuning: its tensors, and the file that a run goes on from."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bevel.errors import UsageError
from bevel.writing import temporary, written

Weights: TypeAlias = dict[str, Tensor]


def tensors(module: nn.Module) -> Weights:
    """Return the parameters and buffers themselves, each once, also those that a `state_dict` leaves out."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


def copied(weights: Mapping[str, Tensor]) -> Weights:
    """Return copies."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


@torch.no_grad()
def restore(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write saved contents into a module's own tensors, so that ties and optimizers keep holding them."""
    own = tensors(module)
    for name, tensor in weights.items():
        own[name].copy_(tensor)


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a run's state, and the settings it is valid for.

    It holds tensors, numbers, strings and containers of them, and is read by `torch.load(weights_only=True)`: reading
    it runs no code. It appears whole or not at all.
    """

    path: Path
    settings: Mapping[str, Any]

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state beside the file, then rename it into place."""
        with written(self.path), temporary(self.path) as new:
            with new.open("xb") as file:
                torch.save({"settings": dict(self.settings), **state}, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """Read the state; None if there is no file. Refuse one that belongs to a run with other settings."""
        if not self.path.exists():
            return None
        state = self._read()
        before = state["settings"]
        names = sorted({*self.settings, *before})
        if differing := [name for name in names if self.settings.get(name) != before.get(name)]:
            changes = ", ".join(f"{name} was {before.get(name)}" for name in differing)
            raise UsageError(
                f"it belongs to a run with other settings: {changes}",
                where=str(self.path),
                remedy="go on with those, or delete the file to start anew",
            )
        return state

    def _read(self) -> dict[str, Any]:
        if not zipfile.is_zipfile(self.path):
            raise self._unreadable()
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise self._unreadable() from error
        if not isinstance(state, dict) or "settings" not in state:
            raise self._unreadable()
        return state

    def _unreadable(self) -> UsageError:
        return UsageError(
            "is no checkpoint of finetune", where=str(self.path), remedy="name another file, or delete it"
        )
