"""Any Python object as text: the same in every process, different where the object is."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
from torch import Tensor

from bevel.frontends.torch.tensors import as_array

ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")

Seen = dict[int, tuple[int, Any]]
"""Objects that were described, by identity: when, and the object itself, so that no other takes its place."""


def told(name: str, value: Any, seen: Seen) -> Iterator[str]:
    """Describe an object by its class and what it holds; one that came before, by when that was."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{name} {value!r}"
        return
    if id(value) in seen:
        yield f"{name} again {seen[id(value)][0]}"
        return
    seen[id(value)] = len(seen), value
    held = parts(value)
    yield f"{name} {named(type(value))} {itself(value, bool(held))}"
    for key, part in held:
        yield from told(key, part, seen)


def itself(value: Any, has_parts: bool) -> str:
    """Describe an object apart from its parts.

    >>> itself(2, False), itself(dict, False)
    ('2', 'builtins.dict')
    """
    if isinstance(value, Tensor | np.ndarray):
        return content(value)
    if isinstance(value, type | FunctionType | MethodType):
        return named(value)
    return "" if has_parts else ADDRESS.sub("", repr(value))


def parts(value: Any) -> list[tuple[str, Any]]:
    """Give the parts of an object by name, in an order that does not change."""
    if isinstance(value, Tensor | np.ndarray | type | ModuleType):
        return []
    if isinstance(value, Mapping):
        return [(repr(key), part) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [("", part) for part in value]
    if isinstance(value, set | frozenset):
        return [("", text) for text in sorted(ADDRESS.sub("", repr(part)) for part in value)]
    if isinstance(value, partial):
        return [("of", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, MethodType):
        return [("of", value.__self__), ("function", value.__func__)]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [("code", value.__code__), ("defaults", value.__defaults__), ("closure", cells)]
    if isinstance(value, CodeType):
        return [("code", value.co_code), ("names", value.co_names), ("constants", value.co_consts)]
    return sorted(vars(value).items()) if hasattr(value, "__dict__") else []


def content(value: Tensor | np.ndarray[Any, Any]) -> str:
    """Describe an array or tensor with its content."""
    array = as_array(value) if isinstance(value, Tensor) else value
    return f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def named(kind: Any) -> str:
    """Return the full name of a class or function."""
    return f"{kind.__module__}.{kind.__qualname__}"
