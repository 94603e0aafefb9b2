"""`bevel passes` and `bevel rules`: what is installed, from its own docstrings and fields."""

import inspect
from collections.abc import Iterator

from bevel.errors import UsageError, nearest
from bevel.passes.base import Pass
from bevel.passes.options import schema
from bevel.registry import OWN_DISTRIBUTION, Registry

NAME_WIDTH = 20


def listed(passes: Registry) -> Iterator[str]:
    """Yield a line per pass, and what is wrong with one that cannot be loaded."""
    for name in passes:
        try:
            yield f"{name:<{NAME_WIDTH}} {_summary(passes[name])}{_origin(passes, name)}"
        except UsageError as error:
            yield f"{name:<{NAME_WIDTH}} cannot be used: {error.where}: {error.what}"


def explained(cls: type[Pass]) -> str:
    """Return a pass's documentation: its docstring, promise and options."""
    rows = [f"  {option}" for option in schema(cls)] or ["  none"]
    doc = inspect.cleandoc(cls.__doc__ or "")
    return "\n".join((f"{cls.name}", "", doc, "", f"Promise: {cls.promise}", "Options:", *rows))


def operators(wanted: str | None) -> Iterator[str]:
    """Yield the operators that have a rule, by domain; with `wanted`, that one's rule."""
    from bevel.ir.coupling import known_rules

    known = known_rules()
    if wanted is None:
        for domain in sorted({domain for domain, _ in known}):
            names = sorted(name for place, name in known if place == domain)
            yield f"{domain or 'ai.onnx'} ({len(names)}): {' '.join(names)}"
        return
    found = [(domain, rule) for (domain, name), rule in sorted(known.items()) if name == wanted]
    if not found:
        raise UsageError(f"no rule for operator {wanted!r}", remedy=nearest(wanted, {name for _, name in known}))
    for domain, rule in found:
        place = f"{domain or 'ai.onnx'}.{wanted}  {rule.__module__}.{rule.__name__}"
        yield f"{place}\n{inspect.getdoc(rule) or ''}".rstrip()


def _summary(cls: type[Pass]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def _origin(passes: Registry, name: str) -> str:
    origin = passes.origin(name)
    return "" if origin.startswith(f"{OWN_DISTRIBUTION} ") else f"  [{origin}]"
