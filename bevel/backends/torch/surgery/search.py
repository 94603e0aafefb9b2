"""Finding the values of attributes that state sizes: the likeliest first, others where the outputs say so."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath
from types import FrameType
from typing import Any, Final, TypeAlias

from torch import nn

from bevel.backends.torch.running import KERNELS_RTOL
from bevel.backends.torch.surgery.attributes import Choice
from bevel.backends.torch.surgery.journal import Journal
from bevel.backends.torch.surgery.running import FORWARD_ERRORS

MOST_TRIALS: Final = 64
"""Runs of the module while looking: as each attribute is decided once for a class, a dozen is usual."""

Check: TypeAlias = Callable[[], float]
Key: TypeAlias = tuple[type, str]


@dataclass(frozen=True)
class Failure:
    """Why a module does not answer as it should: what was raised and where, or how far its answer is."""

    text: str
    owner: type | None = None


def settle(choices: Sequence[Choice], check: Check | None, journal: Journal) -> float | Failure:
    """Set the attributes such that `check` gives a small error; return that error, or the first failure.

    Without a check the likeliest values are set, and the error is NaN.
    """
    mark = journal.mark()
    _set(choices, {}, journal)
    if check is None:
        return float("nan")
    first = outcome(check)
    if not isinstance(first, Failure):
        return first
    for picked in _trials(choices, first.owner):
        journal.restore(mark)
        _set(choices, picked, journal)
        found = outcome(check)
        if not isinstance(found, Failure):
            return found
    return first


def outcome(check: Check) -> float | Failure:
    """Run a check; a forward that raises, or an error that is too large, is a failure."""
    try:
        error = check()
    except FORWARD_ERRORS as raised:
        return _failure(raised)
    return error if error <= KERNELS_RTOL else Failure(f"its outputs differ by {error:.2g} of the largest value")


def _set(choices: Sequence[Choice], picked: Mapping[Key, int], journal: Journal) -> None:
    for choice in choices:
        value = choice.options[min(picked.get(choice.key, 0), len(choice.options) - 1)]
        if value != getattr(choice.owner, choice.name):
            journal.set(choice.owner, choice.name, value, choice.place)


def _trials(choices: Sequence[Choice], suspect: type | None) -> Iterator[dict[Key, int]]:
    """Yield other picks: one attribute at a time, then two; those of the class that failed come first."""
    most: dict[Key, int] = {}
    for choice in choices:
        most[choice.key] = max(most.get(choice.key, 0), len(choice.options))
    keys = sorted(most, key=lambda key: key[0] is not suspect)
    flips = [(key, index) for key in keys for index in range(1, most[key])]
    singles = [{key: index} for key, index in flips]
    pairs = [dict(pair) for pair in combinations(flips, 2) if pair[0][0] != pair[1][0]]
    yield from (*singles, *pairs)[:MOST_TRIALS]


def _failure(raised: BaseException) -> Failure:
    """Say which module's forward raised, in which line, and which of the attributes that it reads are sizes."""
    reason = (str(raised).splitlines() or [type(raised).__name__])[0][:200]
    for frame, line in reversed(list(traceback.walk_tb(raised.__traceback__))):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not type(owner).__module__.startswith(("torch.nn", "bevel.")):
            return Failure(f"{_where(frame, line, owner)} raises {type(raised).__name__}: {reason}", type(owner))
    return Failure(f"its forward raises {type(raised).__name__}: {reason}")


def _where(frame: FrameType, line: int, owner: nn.Module) -> str:
    code = frame.f_code
    summary = traceback.FrameSummary(code.co_filename, line, code.co_name)
    sizes = _sizes_read(frame, owner)
    also = f" (it reads {', '.join(sizes)})" if sizes else ""
    return f"{type(owner).__name__}.{code.co_name}, {PurePath(code.co_filename).name}:{line}, `{summary.line}`{also}"


def _sizes_read(frame: FrameType, owner: nn.Module) -> list[str]:
    """List the integers that a function reads from its module."""
    try:
        source = inspect.getsource(frame.f_code)
    except (OSError, TypeError):
        return []
    names = dict.fromkeys(re.findall(r"\bself\.(\w+)", source))
    values: dict[str, Any] = {name: vars(owner).get(name) for name in names}
    return [f"{name}={value}" for name, value in values.items() if type(value) is int]
