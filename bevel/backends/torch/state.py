"""The state of a module that is no content: where its tensors are, and which parts are in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters are, or its buffers if it has none."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Put every submodule back to train or eval mode as it was, whatever happens."""
    before = {part: part.training for module in modules for part in module.modules()}
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training
