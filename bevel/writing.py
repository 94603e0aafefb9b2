"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bevel.errors import UsageError


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Give a free name beside a path, and remove what is left under it."""
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
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            remedy="check the folder, its permissions and the space left",
        ) from error
