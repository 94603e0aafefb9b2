"""The files behind classes: of installed packages those that define them, of the user's own also what those use."""

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

from bevel.errors import UsageError

VERSIONED: Final = sys.stdlib_module_names | {"torch"}
"""Packages whose version says all."""


def code_behind(names: set[str]) -> Iterator[str]:
    """Give the digests of the files that define classes, and of the user's own files that those use."""
    waiting, done = sorted(names, reverse=True), set[str]()
    while waiting:
        name = waiting.pop()
        if name in done or name.partition(".")[0] in VERSIONED:
            continue
        done.add(name)
        file = file_of(name)
        if file is None:
            raise UsageError(
                f"cannot tell when the code of {name} changes: it is in no file",
                remedy="define the module's class in a file, or load it without a cache",
            )
        yield f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        if is_own(file):
            waiting.extend(sorted(used_by(name) - done, reverse=True))


def used_by(name: str) -> set[str]:
    """Return the user's own files' modules from which a module has what it uses."""
    used: set[str] = set()
    for value in vars(sys.modules[name]).values():
        other = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        file = file_of(other) if isinstance(other, str) else None
        if file is not None and is_own(file):
            used.add(str(other))
    return used


def file_of(name: str) -> Path | None:
    """Return the file of an imported module."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if isinstance(file, str) and Path(file).is_file() else None


@cache
def is_own(file: Path) -> bool:
    """Tell whether a file is the user's own rather than an installed package's: only the first changes unversioned."""
    paths = sysconfig.get_paths()
    return not any(file.is_relative_to(paths[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
