"""Batches for fine-tuning: what a module is called with, in an order that a seed decides."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bevel.backends.torch.finetuning.chance import seed_everything
from bevel.backends.torch.state import device_of
from bevel.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of a module, and the labels that belong to them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None = None

    def call(self, module: nn.Module) -> Any:
        """Run a module on the batch, on the module's device."""
        device = device_of(module)
        return module(*moved(self.args, device), **moved(self.kwargs, device))

    def check(self, module: nn.Module) -> None:
        """Refuse a batch whose arguments the module's forward does not take."""
        signature = inspect.signature(module.forward)
        try:
            signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            given = ", ".join(self.kwargs) or f"{len(self.args)} positional arguments"
            raise UsageError(
                f"a batch of {given} does not fit: {error}",
                where=f"{type(module).__name__}.forward{signature}",
                remedy='if one of them is the labels, say which: labels=-1 in a tuple, labels="name" in a dict',
            ) from None


@dataclass(frozen=True)
class Batches:
    """Data that can be gone through again and again, and which part of a batch is the labels."""

    data: Iterable[Any]
    labels: int | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, Iterator):
            raise UsageError(
                f"the data is an iterator ({type(self.data).__name__}), which can be gone through only once",
                where="data",
                remedy="pass a DataLoader, a list of batches, or an object whose __iter__ starts anew",
            )
        if isinstance(self.data, Tensor | Mapping | str) or not isinstance(self.data, Iterable):
            raise UsageError(
                f"{type(self.data).__name__} is no collection of batches",
                where="data",
                remedy="pass a DataLoader, or a list of batches; a single batch goes into a list",
            )

    def length(self) -> int | None:
        """Return the number of batches of an epoch, None if the data does not know it."""
        try:
            return len(self.data)  # type: ignore[arg-type]  # a DataLoader has __len__ and may still not know
        except TypeError:
            return None

    @property
    def generators(self) -> list[torch.Generator]:
        """The random generators that a DataLoader and its samplers have of their own."""
        sampler = getattr(self.data, "sampler", None)
        inner = getattr(getattr(self.data, "batch_sampler", None), "sampler", None)
        found = (getattr(owner, "generator", None) for owner in (self.data, sampler, inner))
        return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())

    def epoch(self, seed: int, number: int, skip: int = 0) -> Iterator[Batch]:
        """Seed every random generator for an epoch, then go through its batches, leaving out the first ones."""
        seed_everything(seed, number, self.generators)
        batches = iter(self.data)
        for _ in islice(batches, skip):
            pass
        return map(self.split, batches)

    def split(self, batch: Any) -> Batch:
        """Tell a batch's arguments from its labels."""
        if isinstance(batch, Mapping):
            named = dict(batch)
            labels = self._pop(named, f"valid: {', '.join(named)}")
            return Batch((), named, labels)
        if not isinstance(batch, Tensor | tuple | list):
            raise UsageError(
                f"a batch is of type {type(batch).__name__}",
                where="data",
                remedy="a batch is a tensor, a tuple of arguments, or a dict of keyword arguments",
            )
        parts = [batch] if isinstance(batch, Tensor) else list(batch)
        labels = self._pop(parts, f"valid: {-len(parts)} to {len(parts) - 1}")
        return Batch(tuple(parts), {}, labels)

    def _pop(self, parts: Any, valid: str) -> Tensor | None:
        """Take the labels out of a list or dict."""
        if self.labels is None:
            return None
        try:
            return torch.as_tensor(parts.pop(self.labels))
        except (KeyError, IndexError, TypeError):
            raise UsageError(f"a batch has no {self.labels!r}", where="labels", remedy=valid) from None


def moved(value: Any, device: torch.device) -> Any:
    """Return nested tuples, lists and dicts with their tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: moved(part, device) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    return value
