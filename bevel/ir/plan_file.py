"""Plans as JSON files: small, deterministic, and checked when they are read.

{"format": "bevel.plan", "version": 1,
 "places": [[[0, 32], 40]],                              each list once; [0, 32] is 0 to 31
 "tensors": [{"names": ["fc.weight"], "shape": [64, 8], "parameter": true,
              "axes": {"0": {"places": 0, "changes": [["64", "33"]]}}}]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bevel.errors import UsageError
from bevel.ir.change import Change
from bevel.ir.record import Cut
from bevel.writing import write_text

FORMAT: Final = "bevel.plan"
VERSION: Final = 1
# A summary shows so many runs of places.
MOST_SHOWN: Final = 6
# More places than this on one axis are no file of ours: they would fill the memory.
LARGEST_AXIS: Final = 2**28


@dataclass(frozen=True, eq=False)
class PlannedTensor:
    """A tensor with its original shape, and what was taken along its axes.

    Tied parameters have several names. A constant that comes from no parameter is not expected in a checkpoint.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    cuts: Mapping[int, Cut]
    parameter: bool

    @property
    def small_shape(self) -> tuple[int, ...]:
        """The shape that is left."""
        return tuple(len(self.cuts[axis].kept) if axis in self.cuts else size for axis, size in enumerate(self.shape))

    def same(self, other: PlannedTensor) -> bool:
        """Say whether the same was taken of both."""
        return (
            self.shape == other.shape
            and self.cuts.keys() == other.cuts.keys()
            and all(cut.same(other.cuts.get(axis)) for axis, cut in self.cuts.items())
        )


def runs(places: np.ndarray) -> list[Any]:
    """Write places as numbers and ascending ranges.

    >>> runs(np.array([4, 0, 1, 2, 9]))
    [4, [0, 3], 9]
    """
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    found: list[Any] = []
    for run in np.split(places, breaks):
        found.extend([[int(run[0]), int(run[-1]) + 1]] if len(run) > 2 else map(int, run))
    return found


def short(places: np.ndarray) -> str:
    """Write places for people.

    >>> short(np.array([4, 0, 1, 2, 9]))
    '4, 0-2, 9'
    """
    texts = [f"{run[0]}-{run[1] - 1}" if isinstance(run, list) else str(run) for run in runs(places)]
    return ", ".join(texts[:MOST_SHOWN]) + (f", ... ({len(places)} in all)" if len(texts) > MOST_SHOWN else "")


def save(tensors: Sequence[PlannedTensor], path: str | os.PathLike[str]) -> None:
    """Write a plan; the file appears whole or not at all."""
    write_text(path, dumps(tensors))


def load(path: str | os.PathLike[str]) -> tuple[PlannedTensor, ...]:
    """Read a plan; nothing of it is executed."""
    try:
        return loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise UsageError(
            f"is no plan that this version reads: {reason}",
            where=str(path),
            remedy="a plan is written by Plan.save, or by optimize --plan",
        ) from error


def dumps(tensors: Sequence[PlannedTensor]) -> str:
    """Write a plan as text, one list of places and one tensor a line."""
    numbers: dict[str, int] = {}
    lines = [json.dumps(_tensor(tensor, numbers)) for tensor in tensors]
    head = f'{{"format": {json.dumps(FORMAT)}, "version": {VERSION},'
    parts = (head, '"places": [', ",\n".join(numbers), '],\n"tensors": [', ",\n".join(lines), "]}\n")
    return "\n".join(parts)


def _tensor(tensor: PlannedTensor, numbers: dict[str, int]) -> dict[str, Any]:
    axes = {}
    for axis, cut in sorted(tensor.cuts.items()):
        number = numbers.setdefault(json.dumps(runs(cut.kept)), len(numbers))
        changes = [[change.text("before"), change.text("after")] for change in cut.changes]
        axes[str(axis)] = {"places": number, "changes": changes}
    return {"names": list(tensor.names), "shape": list(tensor.shape), "parameter": tensor.parameter, "axes": axes}


def loads(text: str) -> tuple[PlannedTensor, ...]:
    """Read a plan from text; raises what reading wrong data raises."""
    read = json.loads(text)
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    if read["version"] != VERSION:
        raise ValueError(f"it is of version {read['version']!r}, this is {VERSION}")
    places = [_places(listed) for listed in read["places"]]
    tensors = tuple(_read_tensor(entry, places) for entry in read["tensors"])
    names = [name for tensor in tensors for name in tensor.names]
    if len(set(names)) != len(names):
        raise ValueError("two of its tensors have the same name")
    return tensors


def _places(listed: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *_ranges(listed)])


def _ranges(listed: Sequence[Any]) -> Iterator[np.ndarray]:
    for run in listed:
        start, stop = run if isinstance(run, list) else (run, run + 1)
        if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= LARGEST_AXIS:
            raise ValueError(f"{run!r} is no place and no range of places")
        yield np.arange(start, stop)


def _read_tensor(entry: Mapping[str, Any], places: Sequence[np.ndarray]) -> PlannedTensor:
    names, shape = tuple(entry["names"]), tuple(entry["shape"])
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("a tensor has no names")
    if not all(type(size) is int and 0 <= size <= LARGEST_AXIS for size in shape):
        raise ValueError(f"{names[0]!r} has no shape")
    read = {int(axis): _read_cut(names[0], shape, int(axis), cut, places) for axis, cut in entry["axes"].items()}
    return PlannedTensor(names, shape, read, parameter=bool(entry["parameter"]))


def _read_cut(name: str, shape: Sequence[int], axis: int, cut: Mapping[str, Any], places: Sequence[np.ndarray]) -> Cut:
    if not 0 <= axis < len(shape):
        raise ValueError(f"{name!r} has no axis {axis}")
    kept = places[cut["places"]]
    changes = tuple(Change.read(before, after) for before, after in cut["changes"])
    if not len(kept) or kept.max() >= shape[axis] or len(np.unique(kept)) != len(kept):
        raise ValueError(f"the places of {name!r} along axis {axis} are not distinct ones of {shape[axis]}")
    sizes = [shape[axis], *(change.after for change in changes)]
    if [change.before for change in changes] != sizes[:-1] or sizes[-1] != len(kept) or not changes:
        raise ValueError(f"the changes of {name!r} along axis {axis} do not lead from {shape[axis]} to {len(kept)}")
    return Cut(shape[axis], kept, changes)
