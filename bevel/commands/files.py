"""Models from and to paths, stdin and stdout."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import onnx_ir as ir

from bevel.backends.files import save
from bevel.errors import UsageError
from bevel.frontends.onnx import load
from bevel.writing import is_device, written

STREAM = "-"


def read(path: str) -> ir.Model:
    """Load a model from a path, or from stdin."""
    return load(sys.stdin.buffer if path == STREAM else path)


def check_places(places: Iterable[tuple[str, str | None]]) -> None:
    """Refuse, before any work, where nothing can be written, and two things under one name; each with what goes there.

    None is no place, nor is the stream.
    """
    taken: dict[Path, str] = {}
    for what, name in places:
        if name is None or name == STREAM:
            continue
        with written(name):
            _check_place(what, Path(name), name)
            place = Path(name).resolve()
            if place in taken and not is_device(place):
                raise UsageError(f"the {what} would replace the {taken[place]}", where=name, remedy="name another file")
            taken[place] = what


def check_folder(name: str | None) -> None:
    """Refuse, before any work, a folder to write to that is no folder; it may be one that is yet to be made."""
    if name is not None and (not name or (Path(name).exists() and not Path(name).is_dir())):
        raise UsageError("is no folder", where=name or "--keep-failed", remedy="name one, or one that is to be made")


def _check_place(what: str, place: Path, name: str) -> None:
    if not name:
        raise UsageError(f"the {what} has no name", remedy="name a file")
    if not place.resolve().parent.is_dir():
        raise UsageError(f"the {what}'s folder does not exist", where=name, remedy="make it, or name another")
    if place.is_dir():
        raise UsageError("is a folder", where=name, remedy="name a file in it")


def write(model: ir.Model, path: str) -> None:
    """Save a model to a path, or to stdout."""
    if path == STREAM:
        with written("stdout"):
            save(model, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    else:
        save(model, path)


def say(line: str) -> None:
    """Write a line for people, to stderr."""
    click.echo(line, err=True)


def summarize(markdown: str) -> None:
    """Append to the job summary of a GitHub action, where there is one."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123 - appending
            file.write(markdown)
