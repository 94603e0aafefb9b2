"""Models from and to paths, stdin and stdout."""

import os
import sys

import click
import onnx_ir as ir

from bevel.backends.files import save
from bevel.frontends.onnx import load

STREAM = "-"


def read(path: str) -> ir.Model:
    """Load a model from a path, or from stdin."""
    return load(sys.stdin.buffer if path == STREAM else path)


def write(model: ir.Model, path: str) -> None:
    """Save a model to a path, or to stdout."""
    if path == STREAM:
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
