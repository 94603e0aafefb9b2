"""Files that appear whole or not at all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bevel.errors import UsageError


def is_device(path: Path) -> bool:
    """Tell whether a path is a device or a pipe: it is written to, and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, which appears whole or not at all, or write to a device or a pipe."""
    target = Path(path)
    with written(target):
        if is_device(target):
            target.write_text(text, encoding="utf-8")
            return
        with temporary(target) as new:
            new.write_text(text, encoding="utf-8")
            new.replace(target)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Give a free name beside a path, and remove what is left under it; `UsageError` unless the path is a file's."""
    if path.exists() and not path.is_file():
        noun = "folder" if path.is_dir() else "device or a pipe"
        raise UsageError(f"is a {noun}", where=str(path), remedy="name a file")
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.unlink(missing_ok=True)
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)


def module_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return where a module's source and its weights go; `UsageError` unless that is a .py file in a folder."""
    source = Path(path)
    if source.suffix != ".py" or not source.parent.is_dir():
        raise UsageError("is not a .py file in a folder that exists", where=str(path), remedy="name one, like model.py")
    return source, source.with_suffix(".safetensors")


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says against writing a file into a `UsageError` about it."""
    try:
        yield
    except _failures() as error:
        raise UsageError(
            f"cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            remedy="check the folder, its permissions and the space left",
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """Return what writing raises: the system's errors, and those of safetensors, which are none of them."""
    loaded = sys.modules.get("safetensors")
    return (OSError, loaded.SafetensorError) if loaded else (OSError,)
