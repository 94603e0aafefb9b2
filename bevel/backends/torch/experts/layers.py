"""Which linear layers of a module make a feed-forward layer: from its graph, or as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch import nn

from bevel.errors import UsageError
from bevel.ir.feed_forward import FeedForward, feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.provenance import provenance

Layers: TypeAlias = ir.Model | type[nn.Module] | Sequence[str | Sequence[str]]
"""The graph of a module; or a type of modules; or names of modules or patterns of them, or of linear layers in tuples,
the last product last."""

HOW = "name the linear layers in a tuple, the last product last: layers=[('mlp.up', 'mlp.down')]"


@dataclass(frozen=True)
class Dense:
    """The names of the linear layers that read the input of a feed-forward layer, and of the one that gives its output.

    >>> str(Dense(("mlp.gate", "mlp.up"), "mlp.down"))
    'mlp.gate, mlp.up, mlp.down'
    """

    producers: tuple[str, ...]
    down: str

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, the last product last."""
        return (*self.producers, self.down)

    def __str__(self) -> str:
        return ", ".join(self.names)


def find(module: nn.Module, layers: Layers) -> list[Dense]:
    """Return the feed-forward layers that are meant, in the module's order. Raises `UsageError` where there are none.

    Every linear layer must be an `nn.Linear` that no hook watches and whose parameters nobody else has, for others take
    its place.
    """
    found = list(_from_graph(layers) if isinstance(layers, ir.Model) else _from_names(module, layers))
    if not found:
        raise UsageError("there is no feed-forward layer among them", where="layers", remedy=HOW)
    _check_once(found)
    uses = _uses(module)
    for layer in found:
        for name in layer.names:
            _check(module, name, uses)
        _check_sizes(module, layer)
    order = {name: place for place, (name, _) in enumerate(module.named_modules())}
    return sorted(found, key=lambda layer: order[layer.producers[0]])


def linear(module: nn.Module, name: str) -> nn.Linear:
    """Return a linear layer of a module by its name."""
    found = module.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def _from_graph(model: ir.Model) -> Iterator[Dense]:
    """Yield the layers of a graph that was loaded from a module, whose parameters the initializers know."""
    for layer in feed_forwards(analyse(model))[0]:
        producers, downs = _owners(layer, 0), _owners(layer, 1)
        if producers and len(downs) == 1:
            yield Dense(tuple(producers), downs[0])


def _owners(layer: FeedForward, axis: int) -> list[str]:
    """Return the modules whose weight has the hidden dimension at an axis of the parameter: 0 gives it, 1 sums it."""
    names: dict[str, None] = {}
    for member in layer.group.members:
        source = provenance(member.value)
        if source is None or not source.names[0].endswith("weight"):
            continue
        rank = len(member.value.shape or ())
        if source.parameter_rank(rank) == 2 and source.axis(member.axis, rank) == axis:
            names[source.names[0].rpartition(".")[0]] = None
    return list(names)


def _from_names(module: nn.Module, layers: type[nn.Module] | Sequence[str | Sequence[str]]) -> Iterator[Dense]:
    if isinstance(layers, type):
        for name, each in module.named_modules():
            if isinstance(each, layers):
                yield _inside(module, name)
        return
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise UsageError(f"{layers!r} says no layers", where="layers", remedy=f"give the module's graph, or {HOW}")
    for given in layers:
        if not isinstance(given, str):
            yield Dense(tuple(given[:-1]), given[-1])
            continue
        matching = [name for name, _ in module.named_modules() if name and fnmatchcase(name, given)]
        if not matching:
            raise UsageError(f"there is no module {given!r}", where="layers", remedy=HOW)
        yield from (_inside(module, name) for name in matching)


def _inside(module: nn.Module, name: str) -> Dense:
    """Return the feed-forward layer that a submodule is: by the shapes of the linear layers in it."""
    inside = module.get_submodule(name).named_modules(prefix=name)
    linears = {each: part for each, part in inside if isinstance(part, nn.Linear)}
    for down, last in reversed(linears.items()):
        others = {each: part for each, part in linears.items() if each != down}
        shapes = {(part.in_features, part.out_features) for part in others.values()}
        if shapes == {(last.out_features, last.in_features)} and last.in_features != last.out_features:
            return Dense(tuple(others), down)
    sizes = ", ".join(f"{each} {part.in_features}->{part.out_features}" for each, part in linears.items())
    raise UsageError(f"its linear layers are no feed-forward layer: {sizes or 'none'}", where=name, remedy=HOW)


def _check_once(found: Sequence[Dense]) -> None:
    names = [name for layer in found for name in layer.names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError("it is named twice", where=twice, remedy="each linear layer belongs to one feed-forward layer")
    short = next((layer for layer in found if not layer.producers), None)
    if short is not None:
        raise UsageError("a feed-forward layer has two linear layers or more", where=str(short), remedy=HOW)


def _uses(module: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter."""
    uses: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    return uses


def _check(module: nn.Module, name: str, uses: dict[int, list[str]]) -> None:
    try:
        part = module.get_submodule(name)
    except AttributeError:
        raise UsageError("there is no module of this name", where=name, remedy=HOW) from None
    if not isinstance(part, nn.Linear) or type(part).forward is not nn.Linear.forward:
        raise UsageError(f"it is a {type(part).__name__}, not an nn.Linear", where=name, remedy="leave this layer out")
    if part._forward_hooks or part._forward_pre_hooks or hasattr(part, "parametrizations"):
        raise UsageError("it has hooks or parametrizations", where=name, remedy="remove them first")
    owner = module.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        raise UsageError(
            "a TransformerEncoderLayer reads its weights itself in evaluation mode",
            where=name,
            remedy="call torch.backends.mha.set_fastpath_enabled(False) first",
        )
    shared = next((names for each in part.parameters() if len(names := uses[id(each)]) > 1), None)
    if shared is not None:
        raise UsageError(f"a parameter has several names: {', '.join(shared)}", where=name, remedy="leave it out")


def _check_sizes(module: nn.Module, layer: Dense) -> None:
    """Refuse linear layers that cannot follow each other."""
    producers, down = [linear(module, name) for name in layer.producers], linear(module, layer.down)
    given = {part.in_features for part in producers}
    if len(given) > 1 or any(part.out_features % down.in_features for part in producers):
        sizes = ", ".join(f"{part.in_features}->{part.out_features}" for part in (*producers, down))
        raise UsageError(f"they are no feed-forward layer: {sizes}", where=str(layer), remedy=HOW)
