"""Gradients by a model's weights, without labels: of the model's own answers, and of its synaptic flow.

There are four kinds. The first three need inputs, the last only their shapes.

| kind        | what is given                                                                                   |
|-------------|-------------------------------------------------------------------------------------------------|
| `fisher`    | for each feed, a random gradient whose second moment is the Fisher information (`answers.py`)   |
| `predicted` | once, the mean over the feeds of the gradient of the loss against the answer that it gives      |
| `curvature` | once, the Hessian of that mean loss times its gradient                                          |
| `flow`      | once, the gradient of the sum of the outputs where all weights are positive (`flow.py`)         |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir
from torch import Tensor

from bevel.backends.torch.answers import Answers, Loss, fisher, predicted
from bevel.backends.torch.differentiable import Differentiable
from bevel.backends.torch.finetuning.chance import random_state_kept, seed_everything
from bevel.backends.torch.flow import positive, summed

Gradients: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
Feeds: TypeAlias = Iterable[Mapping[str, Any]]


def gradients(model: ir.Model, feeds: Feeds, kind: str, seed: int = 0) -> Iterator[Gradients]:
    """Yield gradients by the names of the initializers that a model learns, each in its initializer's shape.

    Every initializer counts for itself: where several hold one parameter of a module, each has the gradient of its own
    uses. Feeds are kept where they are gone through twice. The same model, feeds and seed give the same gradients.
    Raises `UnsupportedModel`, which names the node, where an operator has no torch function, or has no derivative.
    """
    yield from _KINDS[kind](model, feeds, seed)


def _fisher(model: ir.Model, feeds: Feeds, seed: int) -> Iterator[Gradients]:
    module = Differentiable(model)
    for loss in _losses(module, Answers.of(model), feeds, seed, fisher):
        yield module.named(module.gradients(loss))


def _predicted(model: ir.Model, feeds: Feeds, seed: int) -> Iterator[Gradients]:
    module = Differentiable(model)
    losses = _losses(module, Answers.of(model), feeds, seed, predicted)
    yield module.named(_mean(map(module.gradients, losses)))


def _curvature(model: ir.Model, feeds: Feeds, seed: int) -> Iterator[Gradients]:
    module, answers, kept = Differentiable(model), Answers.of(model), list(feeds)
    slopes = _mean(map(module.gradients, _losses(module, answers, kept, seed, predicted)))
    again = _losses(module, answers, kept, seed, predicted)
    yield module.named(_mean(module.hessian_times(loss, slopes) for loss in again))


def _flow(model: ir.Model, feeds: Feeds, seed: int) -> Iterator[Gradients]:
    module = Differentiable(model, exact=True)
    with positive(module):
        losses = _losses(module, Answers.of(model), map(_ones, feeds), seed, summed)
        slopes = _mean(map(module.gradients, losses))
    yield module.named(slopes)


_KINDS: Final[Mapping[str, Callable[[ir.Model, Feeds, int], Iterator[Gradients]]]] = {
    "fisher": _fisher,
    "predicted": _predicted,
    "curvature": _curvature,
    "flow": _flow,
}


def _losses(module: Differentiable, answers: Answers, feeds: Feeds, seed: int, loss: Loss) -> Iterator[Tensor]:
    """Yield the loss on each feed; what is drawn, here or in the model, follows from the seed and the feed's place."""
    for number, feed in enumerate(feeds):
        with random_state_kept():
            seed_everything(seed, number)
            found = answers.loss(module.run(feed), loss)
        yield found


def _ones(feed: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what is floats in a feed by ones."""
    return {
        name: np.ones_like(value) if isinstance(value, np.ndarray) and value.dtype.kind not in "biuOSUT" else value
        for name, value in feed.items()
    }


def _mean(several: Iterable[list[Tensor]]) -> list[Tensor]:
    """Average lists of tensors one by one."""
    total: list[Tensor] = []
    count = 0
    for each in several:
        total = [a.add_(b) for a, b in zip(total, each, strict=True)] if count else [tensor.clone() for tensor in each]
        count += 1
    return [tensor / count for tensor in total]
