"""Which rows each expert gets: between the linear layers of a feed-forward layer they stand in the order of experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Deal:
    """What experts get of an input `[..., channels]`, whose `leading` sizes make rows.

    `index` `[dealt]` are rows, those of the first expert first, `sizes` how many each has. What an expert gives for a
    row is multiplied by `gates` `[dealt]`. Without an `index` every expert gets all rows, and `gates` is
    `[experts, rows]`.
    """

    leading: torch.Size
    sizes: tuple[int, ...] = ()
    index: Tensor | None = None
    gates: Tensor | None = None


class Dealer(ABC):
    """Deals rows to experts anew each time a feed-forward layer runs: its linear layers share one deal.

    What lies between them sees a hidden tensor `[dealt, entries]`, and works on its entries.
    """

    def __init__(self) -> None:
        self._deal: Deal | None = None
        self._used: set[int] = set()

    @abstractmethod
    def deal(self, x: Tensor) -> Deal:
        """Say which rows of an input each expert gets."""

    def given(self, who: int, x: Tensor) -> Deal:
        """Return the deal for a layer that reads the input: of those, each asks once."""
        if self._deal is None or who in self._used or self._deal.leading != x.shape[:-1]:
            self._deal, self._used = self.deal(x), set()
        self._used.add(who)
        return self._deal

    def taken(self) -> Deal:
        """Return the deal for the layer that gives the output, after which it is over."""
        assert self._deal is not None, "the last product ran before the layers that it reads"
        deal, self._deal = self._deal, None
        return deal

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies keep: what a forward pass left behind belongs to it."""
        return {**vars(self), "_deal": None, "_used": set()}


class Uniform(Dealer):
    """Deals rows at random, as many to each expert as to the others (random uniform partition)."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def deal(self, x: Tensor) -> Deal:
        """Shuffle the rows and cut them into equal parts; where they do not divide, the first have one row more."""
        rows = x.shape[:-1].numel()
        each, more = divmod(rows, self.experts)
        sizes = tuple(each + (expert < more) for expert in range(self.experts))
        return Deal(x.shape[:-1], sizes, torch.randperm(rows, device=x.device))
