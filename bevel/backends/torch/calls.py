"""What a torch function of the table takes and gives, read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

from bevel.backends.torch.table import ELEMENT_TYPE, HOST

Kind: TypeAlias = Literal["ints", "int", "number", "dtype", "plain"]
SPECIAL: Final = ("version", "training", "outputs", "device", "output_type", "input_types")


@dataclass(frozen=True)
class Parameter:
    """One parameter: what it is to be given, and its default (`inspect.Parameter.empty` if it has none)."""

    kind: Kind
    default: Any


@dataclass(frozen=True)
class Call:
    """The signature of a torch function: inputs, attributes and what the writer fills in."""

    function: Callable[..., Any]
    positional: tuple[Parameter, ...]
    variadic: Parameter | None
    keywords: Mapping[str, Parameter]
    special: tuple[str, ...]
    several: bool
    variadic_outputs: bool
    fixed_outputs: int

    def count(self, listed: int) -> int:
        """Return how many values the function gives for a node that lists so many outputs."""
        return listed if self.variadic_outputs else self.fixed_outputs


@cache
def calls(function: Callable[..., Any]) -> Call:
    """Read a function's signature."""
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function).parameters
    read = {name: Parameter(_kind(hints.get(name)), found.default) for name, found in signature.items()}
    kinds = {name: found.kind for name, found in signature.items()}
    positional = [
        name
        for name in read
        if kinds[name] in (inspect._ParameterKind.POSITIONAL_ONLY, inspect._ParameterKind.POSITIONAL_OR_KEYWORD)
    ]
    variadic = [name for name in read if kinds[name] is inspect.Parameter.VAR_POSITIONAL]
    result = hints.get("return")
    several = get_origin(result) is tuple
    parts = get_args(result) if several else ()
    return Call(
        function,
        tuple(read[name] for name in positional),
        read[variadic[0]] if variadic else None,
        {name: found for name, found in read.items() if name not in variadic and name not in SPECIAL},
        tuple(name for name in SPECIAL if name in read and kinds[name] is inspect.Parameter.KEYWORD_ONLY),
        several,
        Ellipsis in parts,
        len(parts),
    )


def _kind(hint: Any) -> Kind:
    """Say what an annotation asks for; an optional one asks for the same."""
    if get_origin(hint) is not Annotated:
        inner = [part for part in get_args(hint) if part is not type(None)]
        annotated = [part for part in inner if get_origin(part) is Annotated]
        return _kind(annotated[0]) if annotated and get_origin(hint) is not tuple else "plain"
    base, note = get_args(hint)
    if note == ELEMENT_TYPE:
        return "dtype"
    if note == HOST:
        return "int" if base is int else "number" if base is float else "ints"
    return "plain"
