"""Train the router of one layer, on what its experts were seen to give.

A router takes the experts with the largest scores. Between the set that it takes for a row and each set that has one
expert exchanged, it is asked to be in doubt: the sets are drawn with the softmax of their scores, and what is minimised
is the error of the layer's output on average over that draw. So choices have a gradient, exact, and count as much as
they cost. Beside that count, a little, how far the shares are from the best choice (pseudo-labels), and balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bevel.backends.torch.finetuning.chance import random_state_kept, seed_everything
from bevel.backends.torch.finetuning.steps import Schedule

Array = np.ndarray[Any, Any]

BATCH: Final = 256
LR: Final = 1e-2
WARMUP: Final = 0.05
DECAY: Final = 0.1
IMITATION: Final = 0.05
"""What the distance from the best choice counts beside the error (FactorLLM)."""
BALANCE: Final = 0.01
"""What an even use of experts counts beside the error (Dense2MoE)."""


@dataclass(frozen=True)
class Seen:
    """What experts were seen to give for rows `[rows, channels]`, and which of them would be best.

    `gram` `[rows, experts, experts]` are inner products of what experts give, `along` `[rows, experts]` of that with
    what all routed experts together should give. `best` `[rows, experts]` is one for those to take.
    """

    rows: Tensor
    gram: Tensor
    along: Tensor
    best: Tensor

    def part(self, index: Tensor) -> Seen:
        """Return some of the rows."""
        return Seen(self.rows[index], self.gram[index], self.along[index], self.best[index])


class Router(nn.Module):
    """A linear layer, and what a small network with `width` hidden entries adds to it, nothing at first."""

    def __init__(self, weight: Array, bias: Array, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight.T.copy()))
            self.linear.bias.copy_(torch.from_numpy(bias))
        self.first = nn.Linear(weight.shape[0], width) if width else None
        self.second = nn.Linear(width, weight.shape[1], bias=False) if width else None
        if self.second is not None:
            nn.init.zeros_(self.second.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Return scores `[rows, experts]`."""
        scores: Tensor = self.linear(rows)
        if self.first is not None and self.second is not None:
            scores = scores + self.second(functional.relu(self.first(rows)))
        return scores

    def arrays(self) -> list[Array]:
        """Return weights `[inputs, outputs]` and constants, the linear layer's first."""
        layers = [self.linear] if self.first is None or self.second is None else [self.linear, self.first, self.second]
        found: list[Array] = []
        for layer in layers:
            found.append(layer.weight.detach().numpy().T.astype(np.float64))
            if layer.bias is not None:
                found.append(layer.bias.detach().numpy().astype(np.float64))
        return found


def trained(
    rows: Array,
    gram: Array,
    along: Array,
    best: Array,
    start: Sequence[Array],
    *,
    width: int,
    epochs: int,
    seed: int,
) -> list[Array]:
    """Return a router's weights and constants after training, which begins at the linear layer `start`.

    Of `width` 0 it is a linear layer; else three more follow: weight and constant of what reads the rows, and the
    weight that is added to the scores. Inputs are as in `Seen`; AdamW on batches of 256 rows.
    """
    seen = Seen(*(torch.from_numpy(np.asarray(each, np.float32)) for each in (rows, gram, along, best)))
    batches = -(-len(rows) // BATCH)
    with random_state_kept():
        seed_everything(seed, 0)
        router = Router(np.asarray(start[0], np.float32), np.asarray(start[1], np.float32), width)
        scale = _excess(router, seen)
        schedule = Schedule(LR, WARMUP, epochs * batches)
        optimizer = torch.optim.AdamW(router.parameters(), lr=LR, weight_decay=DECAY)
        for step in range(epochs * batches):
            if step % batches == 0:
                order = torch.randperm(len(rows))
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step)
            optimizer.zero_grad()
            first = step % batches * BATCH
            torch.autograd.backward(loss(router, seen.part(order[first : first + BATCH]), scale))
            optimizer.step()
    return router.arrays()


def loss(router: Router, seen: Seen, scale: float) -> Tensor:
    """Return the mean error relative to `scale`, and what counts beside it."""
    scores = router(seen.rows)
    shares = scores.softmax(1)
    taken = best_of(scores, seen.best)
    labels = seen.best.softmax(1)
    imitation = functional.kl_div(scores.log_softmax(1), labels, reduction="batchmean")
    active = float(seen.best[0].sum())
    balance = scores.shape[1] * (taken.mean(0) / active * shares.mean(0)).sum()
    total: Tensor = expected(scores, taken, seen) / scale + IMITATION * imitation + BALANCE * balance
    return total


def best_of(scores: Tensor, like: Tensor) -> Tensor:
    """Return ones for as many experts as `like` has, those with the largest scores.

    >>> best_of(torch.tensor([[0.1, 3.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([[0., 1., 1.]])
    """
    active = int(like[0].sum())
    return torch.zeros_like(scores).scatter(1, scores.detach().topk(active, 1).indices, 1.0)


def expected(scores: Tensor, taken: Tensor, seen: Seen) -> Tensor:
    """Return the mean squared error of the output, up to what no router changes, over a row's doubts.

    They are the set taken and those with one expert `a` of it exchanged for another, `b`, which changes the error
    `m G m - 2 m r` of a set `m` by `G_aa - 2 u_a + G_bb + 2 u_b - 2 G_ab`, where `u = G m - r`.
    """
    own = seen.gram.diagonal(dim1=1, dim2=2)
    slope = torch.einsum("nab,nb->na", seen.gram, taken) - seen.along
    error = (taken * (slope - seen.along)).sum(1)
    change = (own - 2 * slope)[:, :, None] + (own + 2 * slope)[:, None, :] - 2 * seen.gram
    possible = (taken[:, :, None] * (1 - taken)[:, None, :]).flatten(1) > 0
    doubts = (scores[:, None, :] - scores[:, :, None]).flatten(1).masked_fill(~possible, -torch.inf)
    drawn = functional.pad(doubts, (1, 0)).softmax(1)[:, 1:]
    return (error + (drawn * change.flatten(1)).sum(1)).mean()


@torch.no_grad()
def _excess(router: Router, seen: Seen) -> float:
    """Return how much larger the error is than with the best experts: what there is to win."""
    scores = router(seen.rows)
    certain = torch.where(seen.best > 0, 1e4, 0.0)
    least = expected(certain, seen.best, seen)
    return max(float(expected(1e4 * scores, best_of(scores, seen.best), seen) - least), 1e-12)
