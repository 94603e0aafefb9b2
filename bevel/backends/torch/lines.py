"""Lines of Python on their way to a function: what is not needed is left out, what is not needed any more is freed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

INDENT: Final = "    "
_WORD: Final = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Line:
    """One line, or a block under a heading; `makes` are the variables that it assigns.

    An `optional` line is dropped if nothing reads what it makes. `other` is the block of an `else`.
    """

    text: str
    makes: tuple[str, ...] = ()
    optional: bool = False
    block: list[Line] | None = None
    other: Line | None = None

    def read(self) -> set[str]:
        """Return every word of the line and its block."""
        words = set(_WORD.findall(self.text))
        for line in (*(self.block or ()), *([self.other] if self.other else ())):
            words |= line.read()
        return words


def assign(names: Iterable[str], expression: str) -> Line:
    """Make a line that assigns an expression to variables."""
    targets = tuple(names)
    return Line(f"{', '.join(targets)} = {expression}", targets)


def settle(lines: list[Line], result: str, kept: Iterable[str] = ()) -> list[str]:
    """Return the text of a function's body that ends by returning `result`.

    A variable is deleted after the last line that reads it: what a module keeps in memory is what autograd keeps.
    """
    lines = needed(lines, set(_WORD.findall(result)))
    made = {name for line in lines for name in line.makes} - set(kept)
    alive, text = set(_WORD.findall(result)), [f"return {result}"]
    for line in reversed(lines):
        freed = sorted((line.read() & made) - alive)
        alive |= line.read()
        rows = render(line)
        if freed and line.block is None:
            rows[-1] += f"; del {', '.join(freed)}"
        elif freed:
            rows.append(f"del {', '.join(freed)}")
        text[:0] = rows
    return text


def needed(lines: list[Line], wanted: set[str]) -> list[Line]:
    """Leave out optional lines that nothing reads after them, in blocks as well."""
    kept: list[Line] = []
    wanted = set(wanted)
    for line in reversed(lines):
        if line.optional and not wanted & set(line.makes):
            continue
        for part in (line, line.other):
            if part is not None and part.block is not None:
                part.block = needed(part.block, wanted | set(_WORD.findall(part.text)))
        wanted |= line.read()
        kept.append(line)
    return kept[::-1]


def render(line: Line) -> list[str]:
    """Return the rows of a line and its block."""
    if line.block is None:
        return [line.text]
    inner = [f"{INDENT}{row}" for part in line.block for row in render(part)]
    return [line.text, *(inner or [f"{INDENT}pass"]), *(render(line.other) if line.other else [])]
