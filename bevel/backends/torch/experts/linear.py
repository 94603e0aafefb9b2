"""Linear layers of which each expert has one."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bevel.backends.torch.experts.rows import Deal, Dealer


class ExpertLinear(nn.Module):
    """One linear layer for each expert, in the place of one of a feed-forward layer; `experts` are `nn.Linear`.

    `merged` computes with the mean of the experts in evaluation mode, for experts that are to become one again.
    """

    def __init__(self, experts: Iterable[nn.Linear], dealer: Dealer, *, merged: bool = False) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.dealer = dealer
        self.merged = merged
        first = self.linears[0]
        self.in_features, self.out_features = first.in_features, first.out_features

    @property
    def linears(self) -> list[nn.Linear]:
        """The experts."""
        return [each for each in self.experts if isinstance(each, nn.Linear)]

    @property
    def weight(self) -> Tensor:
        """The first expert's weight: code around a layer asks for its type and device."""
        return self.linears[0].weight

    def apply_mean(self, x: Tensor) -> Tensor:
        """Compute with the mean of the experts."""
        merged = mean(self.linears)
        return functional.linear(x, merged["weight"], merged.get("bias"))

    def each(self, x: Tensor, deal: Deal) -> Tensor:
        """Give each expert its rows, `[dealt, channels]`, and return what they give, in this order."""
        parts = zip(self.linears, x.split_with_sizes(deal.sizes), strict=True)
        return torch.cat([expert(part) for expert, part in parts])

    def everywhere(self, x: Tensor) -> Tensor:
        """Give each expert its part of rows `[experts, rows, channels]`, or the same `[rows, channels]`."""
        weights: list[Tensor] = [expert.weight for expert in self.linears]
        biases: list[Tensor] = [expert.bias for expert in self.linears if expert.bias is not None]
        found = x @ torch.stack(weights).transpose(1, 2)
        return found + torch.stack(biases)[:, None] if biases else found

    def extra_repr(self) -> str:
        """Say the sizes of one expert."""
        return f"{self.in_features} -> {self.out_features}"


class Producer(ExpertLinear):
    """What reads the input of a feed-forward layer: rows `[..., channels]` in, those dealt `[dealt, entries]` out."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute each expert on the rows that it gets."""
        if self.merged and not self.training:
            return self.apply_mean(x)
        deal = self.dealer.given(id(self), x)
        rows = x.reshape(-1, x.shape[-1])
        if deal.index is None:
            return self.everywhere(rows).flatten(0, 1)
        return self.each(rows[deal.index], deal)


class Down(ExpertLinear):
    """What gives the output of a feed-forward layer: those dealt `[dealt, entries]` in, rows `[..., channels]` out."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute each expert on its rows, times their gates, and add up what each row gets."""
        if self.merged and not self.training:
            return self.apply_mean(hidden)
        deal = self.dealer.taken()
        if deal.index is None:
            assert deal.gates is not None
            found = self.everywhere(hidden.reshape(len(self.experts), -1, hidden.shape[-1]))
            return (found * deal.gates[:, :, None].to(found.dtype)).sum(0).reshape(*deal.leading, self.out_features)
        found = self.each(hidden, deal)
        if deal.gates is not None:
            found = found * deal.gates[:, None].to(found.dtype)
        rows = found.new_zeros(deal.leading.numel(), self.out_features).index_add(0, deal.index, found)
        return rows.reshape(*deal.leading, self.out_features)


def mean(linears: list[nn.Linear]) -> dict[str, Tensor]:
    """Return the mean of the parameters of linear layers, taken in double precision and rounded once."""
    names = [name for name, _ in linears[0].named_parameters()]
    return {name: mean_of([each.get_parameter(name) for each in linears]) for name in names}


def mean_of(tensors: list[Tensor]) -> Tensor:
    """Return the mean of tensors, taken in double precision and rounded once.

    >>> mean_of([torch.tensor([1.0]), torch.tensor([4.0])])
    tensor([2.5000])
    """
    return torch.stack([each.double() for each in tensors]).mean(0).to(tensors[0].dtype)


def put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Put a module in the place of one of the same name, in the same mode."""
    module.set_submodule(name, part.train(module.get_submodule(name).training))


def copies(linear: nn.Linear, count: int) -> list[nn.Linear]:
    """Return copies of a linear layer, with memory of their own."""
    return [copy.deepcopy(linear) for _ in range(count)]


@torch.no_grad()
def fill(linear: nn.Linear, tensors: dict[str, Tensor]) -> None:
    """Write parameters into a linear layer."""
    for name, tensor in tensors.items():
        linear.get_parameter(name).copy_(tensor)
