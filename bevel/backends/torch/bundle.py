"""The source of functions with all that they need from this package, as one piece of Python that stands alone."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias

from bevel.backends.torch.table import lower

PACKAGE: Final = __name__.partition(".")[0]

Definition: TypeAlias = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
Import: TypeAlias = ast.Import | ast.ImportFrom


def bundle(functions: Mapping[str, Callable[..., Any]]) -> tuple[str, str]:
    """Return import statements and definitions, with which each function can be called by the name given for it.

    Definitions of other packages, plugins' too, are imported; those of this package are copied, in an order in which
    each comes after what it needs. Two that have the same name are told apart by the file they come from.
    """
    bundled = _Bundle()
    for name, function in functions.items():
        made = bundled.name_of(function.__module__, function.__name__)
        if made != name:
            bundled.parts.append(f"{name} = {made}")
    return "\n".join(sorted(bundled.imports)), "\n\n\n".join(bundled.parts)


@dataclass
class _Bundle:
    """The definitions so far, and the name each (module, name) has among them."""

    imports: set[str] = field(default_factory=set)
    parts: list[str] = field(default_factory=list)
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def name_of(self, module: str, name: str) -> str:
        """Return what a module's global is called in the bundle, where it is put with all that it needs."""
        if (module, name) in self.names:
            return self.names[module, name]
        if module.partition(".")[0] != PACKAGE:
            self.imports.add(f"from {module} import {name}")
            self.names[module, name] = name
            return name
        definitions, imports = _globals(module)
        if name in imports:
            return self._imported(module, name, imports[name])
        made = self._free(name, module)
        self.names[module, name] = made
        self.parts.append(self._copied(module, definitions[name], made))
        return made

    def _imported(self, module: str, name: str, statement: Import) -> str:
        alias = next(alias for alias in statement.names if (alias.asname or alias.name.partition(".")[0]) == name)
        source = statement.module if isinstance(statement, ast.ImportFrom) else None
        if source is not None and _is_own(source):
            made = self.name_of(source, alias.name)
        else:
            single = ast.ImportFrom(source, [alias], 0) if source is not None else ast.Import([alias])
            self.imports.add(ast.unparse(single))
            made = name
        self.names[module, name] = made
        return made

    def _copied(self, module: str, definition: Definition, made: str) -> str:
        """Return the source of a definition under its name in the bundle; annotations are text and need nothing."""
        definitions, imports = _globals(module)
        known = definitions.keys() | imports.keys()
        renamed = {name: self.name_of(module, name) for name in dict.fromkeys(_reads(definition)) if name in known}
        copy = _Renamed(renamed).visit(ast.parse(ast.unparse(definition)).body[0])
        if not isinstance(copy, ast.FunctionDef | ast.ClassDef):
            return f"{made} = {ast.unparse(copy.value)}"
        copy.name = made
        copy.decorator_list = [part for part in copy.decorator_list if not _registers(part)]
        return ast.unparse(copy)

    def _free(self, name: str, module: str) -> str:
        taken = set(self.names.values())
        while name in taken:
            name = f"{name}_{module.rpartition('.')[2]}"
        return name


class _Renamed(ast.NodeTransformer):
    """Renames globals, and leaves annotations out of what is needed by leaving them as they are."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node


def _reads(definition: Definition) -> Iterator[str]:
    """Give the names that a definition needs when it is made or called; annotations and registration do not count."""
    skipped: set[int] = set()
    for node in ast.walk(definition):
        if id(node) in skipped:
            continue
        notes = [getattr(node, part, None) for part in ("annotation", "returns")]
        notes += [part for part in getattr(node, "decorator_list", []) if _registers(part)]
        skipped |= {id(inner) for note in notes if note is not None for inner in ast.walk(note)}
        if isinstance(node, ast.Name) and id(node) not in skipped:
            yield node.id


def _registers(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id == lower.__name__


@cache
def _globals(module: str) -> tuple[dict[str, Definition], dict[str, Import]]:
    """Return what a module defines and what it imports, by name."""
    definitions: dict[str, Definition] = {}
    imports: dict[str, Import] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                definitions[target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                imports[alias.asname or alias.name.partition(".")[0]] = node
    return definitions, imports


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE
