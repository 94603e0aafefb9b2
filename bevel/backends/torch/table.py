"""The table: which torch function computes an ONNX operator.

    @lower("Gemm")
    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, ...) -> Tensor:

Positional parameters are the operator's inputs in order, `None` for those left away; keyword-only ones are its
attributes, by name, with the operator's defaults. An attribute that the function does not have is refused when a graph
is converted, so that nothing is silently left out. One that became an input in a later version of the operator is
passed by the name of that parameter. The annotation of a parameter says what it is given:

| annotation         | is given                                                                     |
|--------------------|------------------------------------------------------------------------------|
| `Tensor`           | a tensor                                                                     |
| `Ints`, `Int`      | an integer input (or attribute) as Python integers, symbolic in `torch.export` |
| `Number`           | the same of a single number that may be a float (a limit, a step)            |
| `DType`            | the torch type that an attribute of ONNX's element types names               |
| `Any`              | whatever it is: a list (a sequence), None (an empty optional), an array of strings |
| anything else      | an attribute: int, float, str, or lists of them; a tensor attribute as Tensor |

Keyword-only parameters of these names are no attributes; the writer fills them in:

| name           | is given                                                                          |
|----------------|-----------------------------------------------------------------------------------|
| `version`      | the operator set version of the node's domain                                     |
| `training`     | whether the module is in training mode                                            |
| `outputs`      | how many outputs the node lists                                                   |
| `device`       | where tensors that come from nothing are made                                     |
| `output_type`  | the ONNX element type (`ir.DataType`, an int) of the first output, 0 if unknown   |
| `input_types`  | a tuple of those of the inputs                                                    |

A function whose result is annotated as a tuple has several outputs; every other gives one value. A function must be
traceable: no content of a tensor decides what is computed, except where the operator itself makes it so.

Operators that are one line of torch are written as that line:

    write("Add", "{0} + {1}")
    write("Relu", "torch.relu({0})")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import torch

from bevel import registry

HOST: Final = "content as Python integers"
ELEMENT_TYPE: Final = "a torch type"

Ints: TypeAlias = Annotated[Sequence[int], HOST]
Int: TypeAlias = Annotated[int, HOST]
Number: TypeAlias = Annotated[float, HOST]
DType: TypeAlias = Annotated[torch.dtype, ELEMENT_TYPE]

Function = TypeVar("Function", bound=Callable[..., Any])
Refuses: TypeAlias = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Lowering:
    """How an operator is computed: by a call of `function`, or by an expression `line` with `{0}`, `{1}`, ... in it.

    It holds for operator set versions from `since` to `until`. `refuses` is given a node's attributes and says what of
    them is not supported, if anything.
    """

    function: Callable[..., Any] | None
    line: str = ""
    since: int = 1
    until: int | None = None
    refuses: Refuses = lambda attributes: ""


_TABLE: dict[tuple[str, str], list[Lowering]] = {}


def lower(
    *op_types: str,
    domain: str = "",
    since: int = 1,
    until: int | None = None,
    refuses: Refuses = lambda attributes: "",
) -> Callable[[Function], Function]:
    """Register the torch function that computes operators of a domain, from version `since` up to and with `until`."""

    def register(function: Function) -> Function:
        for op_type in op_types:
            _TABLE.setdefault((domain, op_type), []).append(Lowering(function, "", since, until, refuses))
        return function

    return register


def write(op_type: str, line: str, *, domain: str = "", since: int = 1, until: int | None = None) -> None:
    """Register the line of Python that computes an operator without attributes: `{0}` is its first input.

    Where `{0}` and `{1}` are operands of a Python operator, single numbers are written as such.
    """
    _TABLE.setdefault((domain, op_type), []).append(Lowering(None, line, since, until))


def find(domain: str, op_type: str, version: int) -> Lowering | None:
    """Look an operator up."""
    load_table()
    for entry in _TABLE.get((domain, op_type), ()):
        if entry.since <= version and (entry.until is None or version <= entry.until):
            return entry
    return None


@cache
def load_table() -> None:
    """Import every installed set of lowerings, our own and those of plugins, which registers them."""
    installed = registry.lowerings()
    for name in installed:
        installed[name]
