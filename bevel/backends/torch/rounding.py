"""Choose codes of the weights of a part of a model together, by how far its output is off (CBQ, SignRound).

Each weight has two codes to choose from, and leans to one of them by a number between -1/2 and 1/2: the upper one is
taken where it is not negative. The part runs with the codes taken, and the slope of its squared error passes on to the
leaning as if that were the share of the step between both; only its sign counts, so that weights of all layers move
alike. What leans is the sum of a number of each weight's own and a product of two thin matrices. The scales of blocks
are learnt beside that.

Source: Ding et al. 2024, CBQ: Cross-Block Quantization for Large Language Models (windows, thin matrices, scales);
Cheng et al. 2024, Optimize Weight Rounding via Signed Gradient Descent (SignRound).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bevel.backends.torch.differentiable import Differentiable
from bevel.backends.torch.finetuning.chance import random_state_kept, seed_everything

Array = np.ndarray[Any, Any]

STEPS: Final = 100
RANK: Final = 5
# How far a step moves what leans of each weight and the entries of thin matrices, and Adam a scale, relative to it.
# Larger steps fit the samples better, but nothing else: a weight's own number has to go slowly.
OWN, THIN, SCALES = 2.5e-3, 5e-3, 2e-3
START: Final = 0.1
"""The size of the entries of the first thin matrix; the second is zero at first."""


class Doubtful:
    """A weight `[rows, columns]` that is one of two values in every place.

    `low` and `gap` are the lower value and how far the upper one is from it, `lean` `[-1/2, 1/2]` which is taken at
    first, `beside` is added whatever is taken. `blocks` is what the array is cut into for its scales, `[outer, blocks,
    block, inner]`, None where these stay.
    """

    def __init__(
        self, low: Array, gap: Array, lean: Array, beside: Array | None, blocks: tuple[int, int, int, int] | None
    ) -> None:
        self.low, self.gap, self.lean = (torch.from_numpy(np.ascontiguousarray(each)) for each in (low, gap, lean))
        self.beside = None if beside is None else torch.from_numpy(np.ascontiguousarray(beside))
        self.own = torch.zeros_like(self.lean, requires_grad=True)
        rows, columns = low.shape
        rank = min(RANK, rows, columns)
        self.down = (START * torch.randn(rows, rank)).requires_grad_()
        self.up = torch.zeros(rank, columns, requires_grad=True)
        self.blocks = blocks
        self.growth = torch.zeros(_scales(blocks), requires_grad=blocks is not None)

    def value(self) -> Tensor:
        """Return the values taken; the slope goes to what leans."""
        leaning = self.lean + self.own + self.down @ self.up
        upper = (leaning >= 0).float() + (leaning - leaning.detach())  # the latter is zero, but for its slope
        value = self.low + upper * self.gap
        if self.blocks is not None:
            value = value * self._factor(self.blocks)
        return value if self.beside is None else value + self.beside

    def _factor(self, blocks: tuple[int, int, int, int]) -> Tensor:
        outer, _, _, inner = blocks
        whole = (1 + self.growth).expand(blocks).reshape(outer, -1, inner)
        return whole[:, : self.low.numel() // (outer * inner)].reshape(self.low.shape)

    @torch.no_grad()
    def taken(self) -> tuple[Array, Array]:
        """Return where the upper value is taken, and by what the scales `[outer, blocks, 1, inner]` are to grow."""
        upper = self.lean + self.own + self.down @ self.up >= 0
        return upper.numpy(), (1 + self.growth).numpy()


def rounded(
    model: ir.Model,
    feeds: Sequence[Mapping[str, Any]],
    wanted: Iterable[Array],
    weights: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> tuple[dict[str, tuple[Array, Array]], float, float]:
    """Return of each weight what `Doubtful.taken` says, and the error of the output before and after, relative.

    `model` has one output, which is `wanted` for each feed. `weights` are the arguments of `Doubtful` by the names of
    initializers, each in the order the initializer is stored in. The error is the norm of what the output is off, over
    its own. Raises `UnsupportedModel`, which names the node, where torch cannot differentiate the model.
    """
    with random_state_kept():
        seed_everything(seed)
        part = _Part(model, feeds, [torch.from_numpy(np.asarray(each, np.float32)) for each in wanted])
        doubtful = {name: Doubtful(**each) for name, each in weights.items()}
        before = part.error(doubtful)
        _descend(part, list(doubtful.values()), doubtful, before, seed)
        return {name: each.taken() for name, each in doubtful.items()}, before, part.error(doubtful)


class _Part:
    """A part of a model, what it is given, and what it is to give."""

    def __init__(self, model: ir.Model, feeds: Sequence[Mapping[str, Any]], wanted: Sequence[Tensor]) -> None:
        self._function = Differentiable(model)
        self._function.module.requires_grad_(False)
        shapes = zip(self._function.names, self._function.weights, strict=True)
        self._shapes = {name: weight.shape for name, weight in shapes}
        self._pairs = list(zip(feeds, wanted, strict=True))
        self._energy = float(torch.stack([each.square().sum() for each in wanted]).sum()) or 1.0

    def __len__(self) -> int:
        return len(self._pairs)

    def lost(self, weights: Mapping[str, Doubtful], place: int) -> Tensor:
        """Return the squared error of the output for a feed, over the energy of all outputs."""
        feed, wanted = self._pairs[place]
        values = {name: weight.value().reshape(self._shapes[name]) for name, weight in weights.items()}
        (output,) = self._function.run(feed, values)
        lost: Tensor = (output.float() - wanted).square().sum() / self._energy
        return lost

    @torch.no_grad()
    def error(self, weights: Mapping[str, Doubtful]) -> float:
        """Return the relative error over all feeds."""
        return float(torch.stack([self.lost(weights, place) for place in range(len(self))]).sum().sqrt())


def _descend(part: _Part, each: Sequence[Doubtful], weights: Mapping[str, Doubtful], error: float, seed: int) -> None:
    """Go down the slope, feed by feed in a random order, in steps that shrink to nothing."""
    growths = [weight.growth for weight in each if weight.blocks is not None]
    scales = torch.optim.Adam(growths, lr=SCALES) if growths else None
    order = _shuffled(len(part), seed)
    for step, place in zip(range(STEPS), order, strict=False):
        left = 1 - step / STEPS
        loss = part.lost(weights, place) * (len(part) / max(error**2, torch.finfo(torch.float32).tiny))
        torch.autograd.backward(loss)
        with torch.no_grad():
            for weight in each:
                for tensor, rate in ((weight.own, OWN), (weight.down, THIN), (weight.up, THIN)):
                    if tensor.grad is not None:
                        tensor -= rate * left * tensor.grad.sign_()
                        tensor.grad = None
        if scales is not None:
            scales.param_groups[0]["lr"] = SCALES * left
            scales.step()
            scales.zero_grad()


def _shuffled(count: int, seed: int) -> Iterable[int]:
    """Yield the places of all feeds in a random order, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (int(place) for place in rng.permutation(count))


def _scales(blocks: tuple[int, int, int, int] | None) -> tuple[int, ...]:
    return (0,) if blocks is None else (blocks[0], blocks[1], 1, blocks[3])
