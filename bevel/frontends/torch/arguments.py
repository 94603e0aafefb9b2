"""What a module is exported with: example inputs in the forms people have them, and the axes whose size may vary."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from bevel.errors import UsageError, nearest

Examples: TypeAlias = Tensor | Mapping[str, Any] | Sequence[Any]
DynamicShapes: TypeAlias = Mapping[str, Any] | Sequence[Any]

FORMS: Final = "give a tensor, a tuple of positional arguments, a dict of keyword arguments, or (args, kwargs)"


@dataclass(frozen=True)
class Axis:
    """An axis of an example input whose size may vary, and the name of that size."""

    tensor: Tensor
    place: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a module's `forward`, and what may vary of them, as `torch.export` is told."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Mapping[str, Any] | None = None
    axes: tuple[Axis, ...] = ()


def arguments_of(module: nn.Module, examples: Examples, dynamic_shapes: DynamicShapes | None) -> Arguments:
    """Read example inputs, in the order of the forward's own parameters.

    `dynamic_shapes` is what `torch.export` takes, with plain names for sizes: `{"image": {0: "batch"}}`. Arguments that
    it does not mention have fixed sizes.
    """
    args, kwargs = split(examples)
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f"example_inputs do not fit {type(module).__name__}.forward: {error}",
            remedy=f"it takes {', '.join(signature.parameters) or 'nothing'}",
        ) from error
    # The exporter pairs sizes with arguments by their order.
    kwargs = {name: kwargs[name] for name in sorted(kwargs, key=list(signature.parameters | kwargs).index)}
    if dynamic_shapes is None:
        return Arguments(args, kwargs)
    given = by_name(dynamic_shapes, bound.arguments, keywords(bound))
    axes: list[Axis] = []
    shapes = {name: resolved(given.get(name), value, name, axes) for name, value in bound.arguments.items()}
    return Arguments(args, kwargs, shapes, tuple(axes))


def split(examples: Examples) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tell positional arguments from keyword arguments."""
    if isinstance(examples, Tensor):
        return (examples,), {}
    if isinstance(examples, Mapping):
        return (), dict(examples)
    if not isinstance(examples, Sequence) or isinstance(examples, str | bytes):
        raise UsageError(f"example_inputs are a {type(examples).__name__}", remedy=FORMS)
    if len(examples) == 2 and isinstance(examples[0], list | tuple) and isinstance(examples[1], Mapping):
        return tuple(examples[0]), dict(examples[1])
    return tuple(examples), {}


def keywords(bound: inspect.BoundArguments) -> str | None:
    """Return the name of the parameter that takes in all other keyword arguments, if it took any."""
    kinds = bound.signature.parameters
    return next((name for name in bound.arguments if kinds[name].kind is inspect.Parameter.VAR_KEYWORD), None)


def by_name(given: DynamicShapes, arguments: Mapping[str, Any], others: str | None) -> dict[str, Any]:
    """Return what is given for each argument; what names one of the `others` goes there."""
    if not isinstance(given, Mapping):
        if len(given) > len(arguments):
            raise UsageError(
                f"dynamic_shapes has {len(given)} entries for {len(arguments)} arguments",
                remedy="give them by name: {'image': {0: 'batch'}}",
            )
        return dict(zip(arguments, given, strict=False))
    named = dict(given)
    if others is not None and others not in named:
        named[others] = {name: named.pop(name, None) for name in arguments[others]}
    for name in named:
        if name not in arguments:
            raise UsageError(
                f"dynamic_shapes speaks of {name!r}, which example_inputs do not give",
                remedy=nearest(name, arguments),
            )
    return named


def resolved(given: Any, example: Any, where: str, axes: list[Axis]) -> Any:
    """Return what may vary of one argument as `torch.export` takes it, and add its axes that have names to `axes`."""
    if given is None:
        return None
    if isinstance(example, Tensor):
        sizes = dict(sizes_of(given, example, where))
        axes.extend(Axis(example, place, name_of(size)) for place, size in sizes.items() if name_of(size))
        return {place: dynamic(size) for place, size in sizes.items()}
    if isinstance(example, Mapping) and isinstance(given, Mapping):
        return {key: resolved(given.get(key), part, f"{where}[{key!r}]", axes) for key, part in example.items()}
    if type(example) in (list, tuple) and isinstance(given, list | tuple) and len(given) == len(example):
        pairs = zip(given, example, strict=True)
        return type(example)(resolved(one, part, f"{where}[{i}]", axes) for i, (one, part) in enumerate(pairs))
    if isinstance(example, list | tuple | Mapping | str | int | float | bool | None):
        raise UsageError(
            f"dynamic_shapes gives {given!r}, example_inputs a {type(example).__name__}",
            where=where,
            remedy="give for every tensor in it what may vary, or None",
        )
    return given


def sizes_of(given: Any, example: Tensor, where: str) -> Iterator[tuple[int, Any]]:
    """Give the axes of a tensor that are spoken of, counted from the front, each with what is said."""
    if not isinstance(given, Mapping | list | tuple):
        raise UsageError(
            f"dynamic_shapes gives {given!r}", where=where, remedy="give a dict from axes to names: {0: 'batch'}"
        )
    for axis, size in given.items() if isinstance(given, Mapping) else enumerate(given):
        if not isinstance(axis, int) or not -example.ndim <= axis < example.ndim:
            raise UsageError(
                f"dynamic_shapes speaks of axis {axis!r}, the example has {example.ndim} axes",
                where=where,
                remedy="count axes from 0",
            )
        yield axis % example.ndim, size


def name_of(size: Any) -> str:
    """Return the name of a size that may vary; nothing for one that has none."""
    if isinstance(size, str):
        return size
    return str(size.__name__) if isinstance(size, torch.export.Dim) else ""


def dynamic(size: Any) -> Any:
    """Return what `torch.export` takes for a size: names alone do not say more than that it varies."""
    return torch.export.Dim.DYNAMIC if isinstance(size, str) else size
