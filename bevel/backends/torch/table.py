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

    write("Add", "{0} + {1}", types=PLAIN)
    write("Relu", "torch.relu({0})")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import onnx_ir as ir
import torch

from bevel import registry

HOST: Final = "content as Python integers"
ELEMENT_TYPE: Final = "a torch type"

Ints: TypeAlias = Annotated[Sequence[int], HOST]
Int: TypeAlias = Annotated[int, HOST]
Number: TypeAlias = Annotated[float, HOST]
DType: TypeAlias = Annotated[torch.dtype, ELEMENT_TYPE]

FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
PLAIN: Final = FLOATS | {ir.DataType.INT64, ir.DataType.INT32}
"""The element types on which Python's operators do on tensors what ONNX's do."""

Function = TypeVar("Function", bound=Callable[..., Any])
Types: TypeAlias = frozenset[ir.DataType]
Refuses: TypeAlias = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Lowering:
    """How an operator is computed: by a call of `function`, or by an expression `line` with `{0}`, `{1}`, ... in it.

    It holds for operator set versions from `since` to `until`, and where the first input and output have one of the
    element types `types` and `gives`, if these are given. `refuses` is given a node's attributes and says what of them
    is not supported, if anything. A `literal` line is for nodes whose second input is a single constant number. What a
    line `ignores` are attributes that mean nothing where it holds.
    """

    function: Callable[..., Any] | None
    line: str = ""
    since: int = 1
    until: int | None = None
    refuses: Refuses = lambda attributes: ""
    types: Types | None = None
    gives: Types | None = None
    literal: bool = False
    ignores: frozenset[str] = frozenset()
    defaults: Mapping[str, int] = field(default_factory=dict)

    def holds(self, version: int, element_type: int, result: int) -> bool:
        """Say whether it is for a version of the operator with a first input and output of these element types."""
        if (self.types is not None and element_type not in self.types) or result not in (self.gives or (result,)):
            return False
        return self.since <= version and (self.until is None or version <= self.until)


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


def write(
    op_type: str,
    line: str,
    *,
    domain: str = "",
    since: int = 1,
    until: int | None = None,
    types: Types | None = None,
    gives: Types | None = None,
    literal: bool = False,
    ignores: Collection[str] = (),
    defaults: Mapping[str, int] | None = None,
) -> None:
    """Register the line of Python that computes an operator: `{0}` is its first input.

    `{to}` is the element type that its attribute `to` names, any other name an integer attribute, whose default is
    among `defaults`; further attributes are refused, but those that it `ignores`. The line goes before a function for
    the same operator. Where it is right for some element types of the first input or output only, `types` and `gives`
    list them. Where `{0}` and `{1}` are operands of a Python operator, single numbers are written as such; a `literal`
    line is for nodes where the second is such a number.
    """
    entry = Lowering(
        None,
        line,
        since,
        until,
        types=types,
        gives=gives,
        literal=literal,
        ignores=frozenset(ignores),
        defaults=defaults or {},
    )
    _TABLE.setdefault((domain, op_type), []).insert(0, entry)


def find(domain: str, op_type: str, version: int, element_type: int = 0, result: int = 0) -> list[Lowering]:
    """Look an operator up by its version and the element types of its first input and output, 0 if not known."""
    load_table()
    return [entry for entry in _TABLE.get((domain, op_type), ()) if entry.holds(version, element_type, result)]


@cache
def load_table() -> None:
    """Import every installed set of lowerings, our own and those of plugins, which registers them."""
    installed = registry.lowerings()
    for name in installed:
        installed[name]
