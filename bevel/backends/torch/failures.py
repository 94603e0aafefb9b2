"""What torch raises in a converted module, told with the line of the module's code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bevel.errors import UnsupportedModel

SOURCE_FILE: Final = "<bevel graph"
"""How the names begin under which tracebacks show the written code."""


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn what torch raises into an `UnsupportedModel` that says at which line of the module's code."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.line for frame in frames if frame.filename.startswith(SOURCE_FILE)]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = f"at `{lines[-1]}`" if lines else "model"
        raise UnsupportedModel(f"{what}: {reason}", where=where, remedy=remedy) from error
