"""Routers: a linear layer says which experts a row takes and how much each counts."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bevel.backends.torch.experts.rows import Deal, Dealer

Gates: TypeAlias = Literal["chosen", "all"]
"""What an expert is multiplied by: its share among those that the row takes, or among all."""


class Routed(Dealer):
    """Gives each row to the `active` experts that the router scores highest, the first of equals.

    What they give is multiplied by a softmax of the scores, over those chosen or over all, times `gain`. Where a module
    is exported, every expert computes all rows and those not taken count nothing: sizes that depend on values are not
    to be had in a graph of tensors.
    """

    def __init__(self, router: nn.Linear, active: int, gates: Gates = "chosen", gain: float = 1.0) -> None:
        super().__init__()
        self.router, self.active, self.gates, self.gain = router, active, gates, gain
        self.balance: Tensor | None = None

    def deal(self, x: Tensor) -> Deal:
        """Score the experts, and take the best of each row."""
        scores = self.router(x.reshape(-1, x.shape[-1])).float()
        if torch.compiler.is_exporting():
            return self._everywhere(x, scores)
        best, chosen = (each[:, : self.active] for each in scores.sort(dim=1, descending=True, stable=True))
        shares = scores.softmax(1)
        gates = self.gain * (best.softmax(1) if self.gates == "chosen" else shares.gather(1, chosen))
        taken = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)
        # how often each expert is taken, times what the router gives it: least where all get the same (Switch)
        self.balance = scores.shape[1] * (taken.float().mean(0) / self.active * shares.mean(0)).sum()
        places, index = taken.T.nonzero(as_tuple=True)
        spread = torch.zeros_like(scores).scatter(1, chosen, gates)
        sizes = torch.bincount(places, minlength=scores.shape[1]).tolist()
        return Deal(x.shape[:-1], tuple(sizes), index, spread.T[places, index])

    def _everywhere(self, x: Tensor, scores: Tensor) -> Deal:
        best, chosen = scores.topk(self.active, dim=1)
        gates = best.softmax(1) if self.gates == "chosen" else scores.softmax(1).gather(1, chosen)
        spread = torch.zeros_like(scores).scatter(1, chosen, self.gain * gates)
        return Deal(x.shape[:-1], gates=spread.T)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies keep."""
        return {**super().__getstate__(), "balance": None}
