"""Strings are numpy arrays of objects: they are compared, cut and counted, and nothing of them is ever run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel


@lower("StringConcat")
def string_concat(x: Any, y: Any) -> Any:
    """Join pairs of strings, with shapes that broadcast."""
    return np.asarray(x + y, dtype=object)


@lower("RegexFullMatch")
def regex_full_match(x: Any, *, pattern: str = "", device: torch.device) -> Tensor:
    """Say which strings a regular expression describes as a whole."""
    compiled = _compiled(pattern)
    return torch.tensor(_each(x, lambda text: compiled.fullmatch(text) is not None).astype(bool), device=device)


def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of RE2, whose classes are those of ASCII; what Python reads in another way is refused."""
    if "[:" in pattern:
        raise UnsupportedModel(f"Python has no classes as in the pattern {pattern!r}", where="RegexFullMatch")
    try:
        return re.compile(pattern, re.ASCII)
    except re.error as error:
        raise UnsupportedModel(
            f"Python cannot read the pattern {pattern!r}: {error}", where="RegexFullMatch"
        ) from error


@lower("StringSplit")
def string_split(x: Any, *, delimiter: str = "", maxsplit: int = -1, device: torch.device) -> tuple[Any, Tensor]:
    """Cut strings at a delimiter, by default at runs of white space; shorter lists are filled up with empty strings."""
    parts = _each(x, lambda text: text.split(delimiter or None, maxsplit))
    counts = _each(parts, len).astype(np.int64)
    result = np.full((*x.shape, counts.max(initial=0)), "", dtype=object)
    for place in np.ndindex(x.shape):
        result[place][: counts[place]] = parts[place]
    return result, torch.tensor(counts, device=device)


@lower("StringNormalizer")
def string_normalizer(
    x: Any,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "",
    stopwords: Sequence[str] = (),
) -> Any:
    """Drop the strings that are stop words, and change the case of the others; without any left, one is empty.

    Case is that of Unicode, whichever locale is named.
    """
    changes: dict[str, Callable[[str], str]] = {"LOWER": str.lower, "UPPER": str.upper, "NONE": str}
    change, compared = changes[case_change_action], changes["NONE" if is_case_sensitive else "LOWER"]
    stops = {compared(word) for word in stopwords}
    if x.ndim > 2 or (x.ndim == 2 and x.shape[0] != 1):
        raise UnsupportedModel(f"its input has shape {x.shape}", where="StringNormalizer", remedy="use [C] or [1, C]")
    kept = [change(text) for text in x.ravel() if compared(text) not in stops]
    return np.array(kept or [""], dtype=object).reshape([1] * (x.ndim - 1) + [-1])


def _each(x: Any, compute: Callable[[Any], Any]) -> Any:
    """Return an array of objects with the result of a function for every entry."""
    result = np.empty(x.shape, dtype=object)
    for place in np.ndindex(x.shape):
        result[place] = compute(x[place])
    return result
