"""Train a feed-forward layer as experts that are averaged with each other, and become one again."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from bevel.backends.torch.experts.layers import Layers, find, linear
from bevel.backends.torch.experts.linear import Down, ExpertLinear, Producer, copies, fill, mean, mean_of, put
from bevel.backends.torch.experts.rows import Uniform
from bevel.errors import UsageError

EXPERTS: Final = 4
RATE: Final = 0.75
"""Of four experts: at the end each step makes them one."""


class ExpertWeightAveraging:
    """Trains feed-forward layers as experts: a callback for any loop, after which the module is what it was, trained.

    Each layer becomes copies of itself. In training mode every call deals the rows (tokens) to them at random, as many
    to each, so that a step costs what it did; in evaluation mode the mean of the experts computes. After each step of
    the optimizer, `step` moves them together:

        W_i <- (1 - share) W_i + share / (experts - 1) * sum of the others

    The share rises linearly over the `steps` from 0 to `rate`; it leaves the mean of the experts where it is, and at
    (experts - 1) / experts makes them one. `convert` puts the dense layers back, with the mean of the experts, under
    their names.

        averaging = ExpertWeightAveraging(module, layers, steps=len(data) * epochs)
        optimizer = torch.optim.AdamW(module.parameters())      # after it, for the parameters are new ones
        ...                                                     # averaging.step() after each optimizer.step()
        averaging.convert()

    `bevel.finetune(module, ..., progress=averaging)` calls it as well. `every` takes only every so many-th of the
    layers, from the last one backwards. How rows are dealt follows from torch's random generator. What lies between
    the linear layers must work on hidden entries alone: it sees the rows in another order, `[rows, entries]`.

    Raises `UsageError`, and leaves the module as it is, where layers cannot be replaced.

    Source: Huang et al. 2023, Experts Weights Averaging: A New General Training Scheme for Vision Transformers.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Layers,
        *,
        experts: int = EXPERTS,
        rate: float = RATE,
        steps: int | None = None,
        every: int = 1,
    ) -> None:
        _check(experts, rate, steps, every)
        self.module = module
        self.rate, self.steps, self.done = rate, steps, 0
        self.layers = tuple(reversed(find(module, layers)[::-1][::every]))
        self._dense = {name: linear(module, name) for layer in self.layers for name in layer.names}
        for layer in self.layers:
            dealer = Uniform(experts)
            for name in layer.names:
                kind = Down if name == layer.down else Producer
                put(module, name, kind(copies(self._dense[name], experts), dealer, merged=True))

    @property
    def experts(self) -> dict[str, ExpertLinear]:
        """The layers that are experts now, by the names of the dense ones."""
        found = {name: self.module.get_submodule(name) for name in self._dense}
        return {name: part for name, part in found.items() if isinstance(part, ExpertLinear)}

    def share(self, done: int, total: int) -> float:
        """Return how much of an expert is replaced by the others after so many of all steps."""
        return self.rate * min(done / total, 1.0)

    def step(self) -> None:
        """Move the experts together, after a step of the optimizer."""
        if self.steps is None:
            raise UsageError("how far training has come is not known", where="steps", remedy="say how many there are")
        self.done += 1
        self.average(self.share(self.done, self.steps))

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the experts together, told as `bevel.finetune` tells its progress."""
        self.done = done
        self.average(self.share(done, total))

    @torch.no_grad()
    def average(self, share: float) -> None:
        """Replace a share of each expert by the mean of the others, all at once."""
        for part in self.experts.values():
            for name, _ in part.linears[0].named_parameters():
                _together([each.get_parameter(name) for each in part.linears], share)

    def means(self) -> dict[str, Tensor]:
        """Return the mean of the experts by the names of the dense layers' parameters: what `convert` will write."""
        return {
            f"{name}.{key}": tensor for name, part in self.experts.items() for key, tensor in mean(part.linears).items()
        }

    def convert(self) -> nn.Module:
        """Put the dense layers back, each the mean of its experts, and return the module."""
        for name, part in self.experts.items():
            fill(self._dense[name], mean(part.linears))
            put(self.module, name, self._dense[name])
        return self.module


def _together(weights: list[nn.Parameter], share: float) -> None:
    # (1 - b) w + b / (n - 1) * (sum - w) = w + b * n / (n - 1) * (mean - w)
    middle = mean_of(list(weights))
    for weight in weights:
        weight.lerp_(middle, share * len(weights) / (len(weights) - 1))


def _check(experts: int, rate: float, steps: int | None, every: int) -> None:
    for name, value, least in (("experts", experts, 2), ("steps", steps or 1, 1), ("every", every, 1)):
        if value < least:
            raise UsageError(f"{name}={value}", where=name, remedy=f"{least} or more")
    if not 0 <= rate <= 1:
        raise UsageError(f"rate={rate}", where="rate", remedy="it is a share: 0 to 1")
