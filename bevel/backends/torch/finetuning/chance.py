"""Random numbers during fine-tuning: torch, numpy and Python, seeded together, saved together, put back together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch

State: TypeAlias = dict[str, Any]
"""Only tensors, numbers, lists and tuples, so that a checkpoint needs no code to be read."""


def seed_everything(seed: int, stream: int = 0, own: Sequence[torch.Generator] = ()) -> None:
    """Seed the global generators and a loader's own ones; streams of one seed are unrelated to each other."""
    mixed = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # the legacy generator is the one that transforms of data draw from
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed notes the call's stack for each absent device
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(mixed)
    for generator in own:
        generator.manual_seed(mixed)


def random_state(own: Sequence[torch.Generator] = ()) -> State:
    """Return the state of every generator."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "own": [generator.get_state() for generator in own],
    }


def set_random_state(state: State, own: Sequence[torch.Generator] = ()) -> None:
    """Put every generator back to a state."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, own_state in zip(own, state["own"], strict=True):
        generator.set_state(own_state)


@contextmanager
def random_state_kept(own: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Leave no trace in the generators."""
    state = random_state(own)
    try:
        yield
    finally:
        set_random_state(state, own)
