"""What `bevel passes`, `importances`, `formats` and their like say is installed, from its own docstrings and fields."""

import inspect
from collections.abc import Iterator

from bevel.errors import UsageError, nearest
from bevel.passes.base import Pass
from bevel.passes.formats import Format, Scheme, any_format
from bevel.passes.importance import Importance, Scores, declared
from bevel.passes.options import schema
from bevel.registry import OWN_DISTRIBUTION, Registry

NAME_WIDTH = 20
BLOCK = 32
LEVELS = 16
# Of formats without blocks: what a weight of this size takes.
MATRIX = (1024, 1024)


def listed(known: Registry) -> Iterator[str]:
    """Yield a line for each pass or importance, and what is wrong with one that cannot be loaded."""
    for name in known:
        try:
            yield f"{name:<{NAME_WIDTH}} {_summary(known[name])}{_origin(known, name)}"
        except UsageError as error:
            yield f"{name:<{NAME_WIDTH}} cannot be used: {error.where}: {error.what}"


def explained(cls: type[Pass]) -> str:
    """Return a pass's documentation: its docstring, promise and options."""
    rows = [f"  {option}" for option in schema(cls)] or ["  none"]
    return "\n".join((f"{cls.name}", "", _documentation(cls), "", f"Promise: {cls.promise}", "Options:", *rows))


def explained_importance(name: str, found: Scores) -> str:
    """Return an importance's documentation: its docstring, and how it makes one score for each entry."""
    chosen = declared(found)
    ways = (f"{way}: {getattr(chosen, way)}" for way in ("aggregate", "normalize", "allocation"))
    return "\n".join((name, "", _documentation(chosen), "", *ways))


def explained_function(name: str, found: object) -> str:
    """Return a splitter's or router's documentation: its docstring."""
    return "\n".join((name, "", _documentation(found)))


def listed_formats(known: Registry) -> Iterator[str]:
    """Yield a line for each format: the bits an element takes, scale included, in the blocks that are usual."""
    for name in known:
        try:
            found = any_format(name)
            bits = found.bits(*MATRIX) if isinstance(found, Scheme) else found.bits(BLOCK)
            yield f"{name:<{NAME_WIDTH}} {bits:5.3g} bits  {_summary(type(found))}{_origin(known, name)}"
        except UsageError as error:
            yield f"{name:<{NAME_WIDTH}} cannot be used: {error.where}: {error.what}"


def explained_format(found: Format | Scheme) -> str:
    """Return a format's documentation: how its scales are chosen, what it takes and what its codes stand for."""
    if isinstance(found, Scheme):
        sizes = ", ".join(f"{found.bits(size, size):.4g} at {size} x {size}" for size in (256, 1024, 4096))
        return "\n".join((found.name, "", _documentation(type(found)), "", f"Bits: {sizes}"))
    levels = ", ".join(f"{level:.4g}" for level in found.levels[:LEVELS])
    more = ", ..." if len(found.levels) > LEVELS else ""
    sizes = ", ".join(f"{found.bits(block):.4g} at {block}" for block in (16, BLOCK, 128))
    return "\n".join((found.name, "", _documentation(type(found)), "", f"Bits: {sizes}", f"Levels: {levels}{more}"))


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


def _summary(found: object) -> str:
    return _documentation(found).partition("\n")[0]


def _documentation(found: object) -> str:
    documented = found.scores if isinstance(found, Importance) else found
    return inspect.cleandoc(documented.__doc__ or "")


def _origin(known: Registry, name: str) -> str:
    origin = known.origin(name)
    return "" if origin.startswith(f"{OWN_DISTRIBUTION} ") else f"  [{origin}]"
