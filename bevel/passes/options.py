"""Options of a pass: dataclass fields read as a schema, and their values as text or TOML.

An option's type is `float`, `int`, `bool`, `str`, `Literal[...]`, `tuple[str, ...]` or one of these `| None`, inside
`Annotated` with `Range`, `Choice` and `Doc` where wanted.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Halve:
...     name = "halve"
...     times: Annotated[int, Range(1, 8), Doc("how often")] = 1
...     skip: tuple[str, ...] = ()
>>> [str(option) for option in schema(Halve)]
['times: int from 1 to 8 = 1  how often', 'skip: names = ']
>>> render(Halve(times=2, skip=("a", "b c")))
'halve{times=2 skip=a,"b c"}'
"""

import math
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from bevel.errors import UsageError, nearest

BARE = re.compile(r"""[^\s{},="'][^\s{},="]*""")


@dataclass(frozen=True)
class Range:
    """A number's bounds, both included."""

    lo: float = -math.inf
    hi: float = math.inf


@dataclass(frozen=True, init=False)
class Choice:
    """The words an option accepts, where a `Literal` cannot list them."""

    words: tuple[str, ...]

    def __init__(self, *words: str) -> None:
        object.__setattr__(self, "words", words)


@dataclass(frozen=True)
class Doc:
    """One line about an option."""

    text: str


@dataclass(frozen=True)
class Word:
    """One item of a value in a pipeline's text; `quoted` ones are never read as `none`."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Option:
    """One option of a pass."""

    name: str
    kind: type
    many: bool = False
    optional: bool = False
    words: tuple[str, ...] = ()
    range: Range = Range()
    default: Any = None
    doc: str = ""

    @property
    def label(self) -> str:
        """Return the name as it is written in a pipeline: with dashes."""
        return self.name.replace("_", "-")

    @property
    def type_text(self) -> str:
        """Return what values it takes, for people."""
        noun = "|".join(self.words) or ("names" if self.many else self.kind.__name__)
        return noun + _bounds(self.range) + (" or none" if self.optional else "")

    def __str__(self) -> str:
        doc = f"  {self.doc}" if self.doc else ""
        return f"{self.label}: {self.type_text} = {self.format(self.default)}{doc}"

    def parse(self, words: Sequence[Word]) -> Any:
        """Read a value from the items of its text; raise `UsageError` if they do not make one."""
        if self.optional and [(word.text, word.quoted) for word in words] == [("none", False)]:
            return None
        if self.many:
            return self.checked(tuple(word.text for word in words))
        if len(words) != 1:
            raise self._wrong(",".join(word.text for word in words))
        return self.checked(self._scalar(words[0].text))

    def checked(self, value: Any) -> Any:
        """Return `value` (an int where a float is wanted becomes one); raise `UsageError` if it is not allowed."""
        if value is None and self.optional:
            return value
        if self.many:
            return self._checked_names(value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise self._wrong(value)
        if self.words and value not in self.words:
            raise UsageError(f"{self.label}={value} is not allowed", remedy=nearest(str(value), self.words))
        if isinstance(value, (int, float)) and not self._in_range(value):
            raise self._wrong(value)
        return value

    def format(self, value: Any) -> str:
        """Write `value` as it is read: `parse` gives it back."""
        if value is None:
            return "none"
        if self.many:
            return ",".join(_quoted(item) for item in value)
        if self.kind is bool:
            return str(value).lower()
        return _quoted(value, none=self.optional) if self.kind is str else repr(value)

    def _in_range(self, value: float) -> bool:
        return self.range.lo <= value <= self.range.hi and math.isfinite(value)

    def _checked_names(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
            raise self._wrong(value)
        for item in value:
            if self.words and item not in self.words:
                raise UsageError(f"{self.label}={item} is not allowed", remedy=nearest(item, self.words))
        return tuple(value)

    def _scalar(self, text: str) -> Any:
        try:
            return SCALARS[self.kind](text)
        except (ValueError, KeyError):
            raise self._wrong(text) from None

    def _wrong(self, value: Any) -> UsageError:
        return UsageError(f"{self.label}={value} is not {_article(self.type_text)}", remedy=f"{self}")


SCALARS: dict[type, Callable[[str], Any]] = {
    float: float,
    int: int,
    str: str,
    bool: {"true": True, "false": False}.__getitem__,
}


def schema(cls: type) -> tuple[Option, ...]:
    """Return the options of pass class `cls`, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_option(field.name, hints[field.name], field.default) for field in fields(cls) if field.init)


def check(instance: Any) -> None:
    """Check every option of a pass instance; raise `UsageError` naming pass and option."""
    for option in schema(type(instance)):
        value = option_value(instance, option, option.checked)
        object.__setattr__(instance, option.name, value)


def option_value(owner: Any, option: Option, read: Callable[[Any], Any]) -> Any:
    """Return `read(value)` of `owner`'s option; an error says which pass it is about."""
    try:
        return read(getattr(owner, option.name))
    except UsageError as error:
        raise UsageError(error.what, where=owner.name, remedy=error.remedy) from None


def build(cls: type, values: dict[str, Any], read: Callable[[Option, Any], Any] = Option.checked) -> Any:
    """Return an instance of pass class `cls` with its options from `values`, by their written names."""
    known = {option.label: option for option in schema(cls)}
    where = str(getattr(cls, "name", cls.__name__))
    for label in values:
        if label not in known and label.replace("_", "-") not in known:
            choices = nearest(label, known) if known else "it has no options"
            raise UsageError(f"no option is called {label!r}", where=where, remedy=choices)
    try:
        found = {label.replace("_", "-"): value for label, value in values.items()}
        return cls(**{known[label].name: read(known[label], value) for label, value in found.items()})
    except UsageError as error:
        raise UsageError(error.what, where=error.where or where, remedy=error.remedy) from None


def render(instance: Any) -> str:
    """Write a pass instance as pipeline text, options at their defaults left out."""
    values = [(option, getattr(instance, option.name)) for option in schema(type(instance))]
    stated = [f"{option.label}={option.format(value)}" for option, value in values if value != option.default]
    return f"{instance.name}{{{' '.join(stated)}}}" if stated else str(instance.name)


def _option(name: str, hint: Any, default: Any) -> Option:
    if default is MISSING:
        raise TypeError(f"option {name!r} needs a default")
    base, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    optional = get_origin(base) in (Union, types.UnionType) and type(None) in get_args(base)
    if optional:
        (base,) = (arg for arg in get_args(base) if arg is not type(None))
    literal = get_args(base) if get_origin(base) is Literal else ()
    many = get_origin(base) is tuple
    kind = str if literal or many else base
    if kind not in SCALARS:
        raise TypeError(f"option {name!r} has type {hint}; see bevel.passes.options for those allowed")
    words = next((extra.words for extra in extras if isinstance(extra, Choice)), literal)
    bounds = next((extra for extra in extras if isinstance(extra, Range)), Range())
    doc = next((extra.text for extra in extras if isinstance(extra, Doc)), "")
    return Option(name, kind, many, optional, tuple(words), bounds, default, doc)


def _bounds(bounds: Range) -> str:
    if math.isinf(bounds.lo) and math.isinf(bounds.hi):
        return ""
    if math.isinf(bounds.hi):
        return f" of at least {bounds.lo:g}"
    return f" up to {bounds.hi:g}" if math.isinf(bounds.lo) else f" from {bounds.lo:g} to {bounds.hi:g}"


def _article(noun: str) -> str:
    if noun.startswith("names"):
        return "a list of names"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}" if "|" not in noun else f"one of {noun}"


def _quoted(text: str, *, none: bool = False) -> str:
    if BARE.fullmatch(text) and not (none and text == "none"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
