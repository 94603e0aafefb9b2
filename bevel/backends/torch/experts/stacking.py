"""Several checkpoints of one network as one: their feed-forward layers, and attention, are experts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from bevel.backends.torch.experts.layers import Layers, find, linear
from bevel.backends.torch.experts.linear import mean_of, put
from bevel.backends.torch.experts.routing import Gates, Routed
from bevel.backends.torch.experts.upcycling import NOISE, Experts, replace, router_of
from bevel.errors import UsageError


class SoftExperts(nn.Module):
    """Modules that all run; what they give is added, weighted by what a router makes of the first argument."""

    def __init__(self, experts: Sequence[nn.Module], router: nn.Linear) -> None:
        super().__init__()
        self.experts, self.router = nn.ModuleList(experts), router

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call every expert alike. Of several outputs only the first may be there, the others None."""
        given = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        shares = self.router(given).float().softmax(-1)
        outputs = [expert(*args, **kwargs) for expert in self.experts]
        if isinstance(outputs[0], Tensor):
            return _weighted(outputs, shares)
        if any(part is not None for output in outputs for part in output[1:]):
            raise UsageError(
                "it returns more than one tensor, which cannot be mixed",
                where=type(self.experts[0]).__name__,
                remedy="ask for no attention weights and no cache (need_weights=False, use_cache=False)",
            )
        return (_weighted([output[0] for output in outputs], shares), *outputs[0][1:])


def _weighted(outputs: Sequence[Tensor], shares: Tensor) -> Tensor:
    parts = zip(outputs, shares.unbind(-1), strict=True)
    return torch.stack([output * share[..., None].to(output.dtype) for output, share in parts]).sum(0)


def stack_experts(
    modules: Sequence[nn.Module],
    layers: Layers,
    *,
    attention: Sequence[str] = (),
    active: int = 1,
    gates: Gates = "all",
    noise: float = NOISE,
    seed: int = 0,
) -> Experts:
    """Return one module out of several checkpoints of the same network, as a mixture that is trained on.

    Each feed-forward layer of `layers` has one expert a checkpoint, of which a row takes `active`, weighted by the
    router's softmax over `gates`: all of them, or those chosen. Modules whose names match `attention` are experts of
    which all run, weighted by a softmax. Everything else is the mean of the checkpoints, routers are random, so the
    result has to be trained. `convert` on what is returned averages the feed-forward experts.

    The modules stay as they are. Raises `UsageError` where they are not of one network.

    Source: Zhang et al. 2024, BAM! Just Like That: Simple and Efficient Parameter Upcycling for Mixture of Experts
    (experts with keys and values of their own; blocks stay as the network has them, not parallel).
    """
    _check_alike(modules)
    if not 1 <= active <= len(modules):
        raise UsageError(f"{active} of {len(modules)} experts cannot run", where="active", remedy="1 to all of them")
    base = copy.deepcopy(modules[0])
    found = tuple(find(base, layers))
    soft = list(_matching(base, attention))
    _average(base, modules)
    generator = torch.Generator().manual_seed(seed)

    def router(like: nn.Linear, width: int) -> nn.Linear:
        return router_of(noise * torch.randn(len(modules), width, generator=generator), like)

    for name in soft:
        parts = [copy.deepcopy(module.get_submodule(name)) for module in modules]
        first = _first_linear(parts[0], name)
        put(base, name, SoftExperts(parts, router(first, first.in_features)))
    dense: dict[str, nn.Linear] = {}
    for layer in found:
        given = linear(base, layer.producers[0])
        dealer = Routed(router(given, given.in_features), active, gates)
        dense |= replace(base, layer, lambda name: [copy.deepcopy(linear(each, name)) for each in modules], dealer)
    return Experts(base, found, 1, dense)


def _matching(module: nn.Module, patterns: Sequence[str]) -> Iterator[str]:
    """Yield the modules that match a pattern. Raises `UsageError` for one that nothing matches."""
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"there is no module {pattern!r}", where="attention", remedy="give names of modules")
        yield from matching


def _first_linear(module: nn.Module, name: str) -> nn.Linear:
    """Return the first linear layer of attention, which reads what the router reads."""
    found = next((each for each in module.modules() if isinstance(each, nn.Linear)), None)
    if found is None:
        raise UsageError("there is no linear layer in it", where=name, remedy="leave it out")
    return found


def _check_alike(modules: Sequence[nn.Module]) -> None:
    if len(modules) < 2:
        raise UsageError("there is nothing to stack", where="modules", remedy="give two checkpoints or more")
    shapes = [{name: tensor.shape for name, tensor in module.state_dict().items()} for module in modules]
    for place, other in enumerate(shapes[1:], 1):
        apart = next((name for name in shapes[0].keys() | other.keys() if shapes[0].get(name) != other.get(name)), None)
        if apart is not None:
            raise UsageError(
                f"{apart!r} is {_size(shapes[0], apart)} in the first, {_size(other, apart)} here",
                where=f"module {place}",
                remedy="stack checkpoints of one network",
            )


def _size(shapes: dict[str, torch.Size], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "not there"


@torch.no_grad()
def _average(base: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Write the mean of the modules' floats into a module; other tensors stay the first one's."""
    states = [module.state_dict() for module in modules]
    for name, tensor in base.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(mean_of([state[name] for state in states]))
