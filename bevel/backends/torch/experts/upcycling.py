"""Grow a dense network into a mixture of experts that begins as the same function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from bevel.backends.torch.experts.layers import Dense, Layers, find, linear
from bevel.backends.torch.experts.linear import Down, ExpertLinear, Producer, fill, mean_of, put
from bevel.backends.torch.experts.routing import Routed
from bevel.errors import UsageError

NOISE: Final = 0.02
"""The standard deviation of a fresh router's weights."""

Linears = Callable[[str], list[nn.Linear]]


@dataclass
class Experts:
    """A module whose feed-forward layers are experts with routers; `layers` are the dense ones they stand for.

    Routers are linear layers without constants, called `router` in the first linear layer of each.
    """

    module: nn.Module
    layers: tuple[Dense, ...]
    parts: int = 1
    _dense: dict[str, nn.Linear] = field(default_factory=dict, repr=False)

    @property
    def routers(self) -> dict[str, nn.Linear]:
        """The routers by the names of their parameters' module."""
        return {f"{layer.producers[0]}.router": self._dealer(layer).router for layer in self.layers}

    def balance(self) -> Tensor:
        """Return a loss that is 1 where all experts of each layer had the same share of the last batch, and more else.

        Add it to the loss with a small weight (0.01). Source: Fedus et al. 2021, Switch Transformers.
        """
        found = [balance for layer in self.layers if (balance := self._dealer(layer).balance) is not None]
        if not found:
            raise UsageError("no batch has run yet", where="balance", remedy="call the module first")
        return torch.stack(found).mean()

    def convert(self) -> nn.Module:
        """Put dense layers back, the mean of the copies, and return the module. Sense it makes while they are alike."""
        for layer in self.layers:
            for name in layer.names:
                dense = self._dense[name]
                fill(dense, self._joined(_experts(self.module, name), down=name == layer.down))
                put(self.module, name, dense)
        return self.module

    def _dealer(self, layer: Dense) -> Routed:
        dealer = _experts(self.module, layer.down).dealer
        assert isinstance(dealer, Routed)
        return dealer

    def _joined(self, part: ExpertLinear, *, down: bool) -> dict[str, Tensor]:
        """Return the mean of copies, each put together from its parts, which have shares of the output's constant."""
        held = {name: [each.get_parameter(name).detach() for each in part.linears] for name in _names(part.linears[0])}
        found = {}
        for name, tensors in held.items():
            wholes = [tensors[start : start + self.parts] for start in range(0, len(tensors), self.parts)]
            axis = int(down)
            shares = down and name == "bias"
            found[name] = mean_of([sum(whole[1:], whole[0]) if shares else torch.cat(whole, axis) for whole in wholes])
        return found


def upcycle(
    module: nn.Module,
    layers: Layers,
    *,
    experts: int = 8,
    active: int = 2,
    parts: int = 1,
    every: int = 1,
    noise: float = NOISE,
    seed: int = 0,
) -> Experts:
    """Turn feed-forward layers, in place, into experts with a router that together compute what the layer computed.

    Each layer becomes `experts` copies of itself, of which a row takes `active`; the router is random, and as what
    copies give is weighted by shares of one, the function does not change (Sparse Upcycling). With `parts`, each copy
    is cut into so many experts along the hidden dimension, which begin with one row of the router: then a row takes all
    parts of `active` copies, and the function does not change either (Dynamic-DINO). Trained, it takes what it likes:
    `active * parts` of `experts * parts`.

    `layers` says which (see `bevel/backends/torch/experts`), `every` takes only every so many-th, from the last one
    backwards. An optimizer has to be made afterwards. Returns what balances the routers and leads back. Raises
    `UsageError`, and leaves the module as it is, where layers cannot be replaced or cut.

    Source: Komatsuzaki et al. 2023, Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints (token-choice
    routing, gates normalised after it); Lu et al. 2025, Dynamic-DINO.
    """
    for name, value in (("experts", experts), ("active", active), ("parts", parts), ("every", every)):
        if value < 1:
            raise UsageError(f"{name}={value}", where=name, remedy="1 or more")
    if active > experts:
        raise UsageError(f"{active} of {experts} experts cannot run", where="active", remedy="active <= experts")
    chosen = tuple(reversed(find(module, layers)[::-1][::every]))
    for layer in chosen:
        _check_parts(module, layer, parts)
    generator = torch.Generator().manual_seed(seed)
    dense: dict[str, nn.Linear] = {}
    for layer in chosen:
        given = linear(module, layer.producers[0])
        rows = noise * torch.randn(experts, given.in_features, generator=generator)
        router = router_of(rows.repeat_interleave(parts, 0), given)
        cut = {name: _cut(linear(module, name), parts, experts, down=name == layer.down) for name in layer.names}
        dense |= replace(module, layer, cut.__getitem__, Routed(router, active * parts, gain=float(parts)))
    return Experts(module, chosen, parts, dense)


def replace(module: nn.Module, layer: Dense, experts: Linears, dealer: Routed) -> dict[str, nn.Linear]:
    """Put experts in the place of a layer's linear ones; return those by name."""
    dense = {name: linear(module, name) for name in layer.names}
    for name in layer.names:
        kind = Down if name == layer.down else Producer
        part = kind(experts(name), dealer)
        if name == layer.producers[0]:
            part.router = dealer.router
        put(module, name, part)
    return dense


def router_of(rows: Tensor, like: nn.Linear) -> nn.Linear:
    """Return a router with a row of weights for each expert, where and of what type a layer is."""
    router = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
    fill(router, {"weight": rows})
    return router.to(like.weight.device, like.weight.dtype)


def _cut(dense: nn.Linear, parts: int, times: int, *, down: bool) -> list[nn.Linear]:
    """Return `times` copies of each part of a layer: of its outputs, or for the last product of its inputs."""
    return [_part(*tensors, dense) for _ in range(times) for tensors in _parts(dense, parts, down=down)]


def _parts(dense: nn.Linear, parts: int, *, down: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
    bias = dense.bias
    for place, weight in enumerate(dense.weight.chunk(parts, int(down))):
        if bias is None:
            yield weight, None
        else:
            yield weight, bias / parts if down else bias.chunk(parts)[place]


def _part(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    part = part.to(weight.device, weight.dtype)
    fill(part, {"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return part.requires_grad_(like.weight.requires_grad)


def _check_parts(module: nn.Module, layer: Dense, parts: int) -> None:
    """Refuse to cut what does not divide, or holds gate and up in one layer, in an order that is not known."""
    size = linear(module, layer.down).in_features
    if size % parts:
        raise UsageError(f"{size} hidden entries are not {parts} equal parts", where=str(layer), remedy="parts=1")
    if parts > 1 and any(linear(module, name).out_features != size for name in layer.producers):
        raise UsageError("gate and up are one layer, which cannot be cut", where=str(layer), remedy="parts=1")


def _experts(module: nn.Module, name: str) -> ExpertLinear:
    part = module.get_submodule(name)
    assert isinstance(part, ExpertLinear)
    return part


def _names(dense: nn.Linear) -> list[str]:
    return [name for name, _ in dense.named_parameters()]
