"""Pipelines as text and as TOML.

    simplify,prune-channels{ratio=0.5 skip=head,"layer 1"},reorder-channels

Passes are separated by commas, options by spaces; a list's items by commas; a value with spaces, commas, braces, quotes
or `=` in it is put in quotes, double or single. The same in a recipe file, or under `[tool.bevel]` in pyproject.toml:

    [[pass]]
    name = "prune-channels"
    ratio = 0.5
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from bevel import registry
from bevel.errors import UsageError
from bevel.passes import options
from bevel.passes.base import Pass
from bevel.passes.options import Option, Word

TOKEN = re.compile(
    r"""\s*(?:
        (?P<mark>[{},=])
        | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
        | (?P<bare>[^\s{},="'][^\s{},="]*)
        | (?P<end>\Z)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run. `str` writes it as text that `parse` reads back."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)


def parse(text: str) -> Pipeline:
    """Read a pipeline from its text. Raises `UsageError` that says where, with the nearest valid name."""
    return _Reader(text).pipeline()


def from_recipe(path: str | PathLike[str]) -> Pipeline:
    """Read a pipeline from a TOML recipe, or from `[tool.bevel]` of a pyproject.toml. Raises `UsageError`."""
    where = str(path)
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot be read as TOML: {error}", where=where) from error
    if Path(path).name == "pyproject.toml":
        table = table.get("tool", {}).get("bevel", {})
    return from_table(table, where)


def from_table(table: Mapping[str, Any], where: str) -> Pipeline:
    """Read a pipeline from a recipe's table: `passes` as text, or `[[pass]]` entries with a name and options."""
    unknown = table.keys() - {"passes", "pass"}
    if unknown:
        raise UsageError(f"unknown key {min(unknown)!r}", where=where, remedy="a recipe has `passes` or `[[pass]]`")
    if ("passes" in table) == ("pass" in table):
        raise UsageError("a recipe has either `passes` or `[[pass]]` entries", where=where)
    text, entries = table.get("passes"), table.get("pass")
    if isinstance(text, str):
        return parse(text)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError("`passes` is a text and `pass` an array of tables", where=where)
    return Pipeline(tuple(_from_entry(entry, f"{where}: pass {n}") for n, entry in enumerate(entries, 1)))


def as_pipeline(source: str | Pipeline | Pass | Sequence[Pass]) -> Pipeline:
    """Return `source` as a pipeline: its text, a pass, or several."""
    if isinstance(source, str):
        return parse(source)
    if isinstance(source, Pipeline):
        return source
    return Pipeline((source,) if isinstance(source, Pass) else tuple(source))


def _from_entry(entry: dict[str, Any], where: str) -> Pass:
    name = entry.get("name")
    if not isinstance(name, str):
        raise UsageError("has no name", where=where)
    return _build(name, {key: value for key, value in entry.items() if key != "name"}, Option.checked)


def _build(name: str, values: dict[str, Any], read: Any) -> Pass:
    built = options.build(registry.passes()[name], values, read)
    assert isinstance(built, Pass)
    return built


class _Reader:
    """A recursive-descent reader of pipeline text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> Pipeline:
        passes = [self._pass()]
        while self._mark(","):
            passes.append(self._pass())
        if self._peek().lastgroup != "end":
            raise self._unexpected("',' or the end")
        return Pipeline(tuple(passes))

    def _pass(self) -> Pass:
        name = self._word("the name of a pass").text
        values: dict[str, list[Word]] = {}
        if self._mark("{"):
            while not self._mark("}"):
                label = self._word("an option or '}'").text
                if label in values:
                    raise self._wrong(f"option {label!r} is given twice")
                if not self._mark("="):
                    raise self._unexpected(f"'=' after option {label!r}")
                values[label] = self._items()
        return _build(name, values, Option.parse)

    def _items(self) -> list[Word]:
        """Read a value: items with commas between them; nothing at all is the empty list."""
        if self._empty_value():
            return []
        items = [self._word("a value")]
        while self._mark(","):
            items.append(self._word("a value"))
        return items

    def _empty_value(self) -> bool:
        following = self._peek()
        after = TOKEN.match(self.text, following.end())
        another_option = following.lastgroup == "bare" and after is not None and after["mark"] == "="
        return following["mark"] == "}" or another_option

    def _peek(self) -> re.Match[str]:
        match = TOKEN.match(self.text, self.at)
        if match is None:
            raise self._wrong("a quote is not closed")
        return match

    def _mark(self, mark: str) -> bool:
        match = self._peek()
        if match["mark"] != mark:
            return False
        self.at = match.end()
        return True

    def _word(self, expected: str) -> Word:
        match = self._peek()
        if match.lastgroup not in ("bare", "quoted"):
            raise self._unexpected(expected)
        self.at = match.end()
        if match["bare"] is not None:
            return Word(match["bare"])
        return Word(re.sub(r"\\(.)", r"\1", match["quoted"][1:-1]), quoted=True)

    def _unexpected(self, expected: str) -> UsageError:
        match = self._peek()
        found = "the end" if match.lastgroup == "end" else repr(match[0].strip())
        return self._wrong(f"expected {expected}, found {found}")

    def _wrong(self, what: str) -> UsageError:
        return UsageError(what, where=f"passes, column {self.at + 1}", remedy=f"{self.text}\n  {' ' * self.at}^")
