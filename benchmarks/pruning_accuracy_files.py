"""Files of this machine as the inputs of magika: bytes of their beginning and end."""

import os
import random
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

PLACES = (Path(sysconfig.get_path("stdlib")), Path(sys.prefix), Path("/etc"), Path("/usr/share"), Path("/usr/lib"))
PARTS = {"calibration": 128, "validation": 200, "test": 300}
PER_SUFFIX = 25  # so that no kind of file outweighs the rest
LOOKED_AT = 60_000  # files of each place
SMALLEST = 64  # bytes: smaller ones are mostly empty
# How magika reads a file: see its Magika._extract_features_from_seekable.
BLOCK, KEPT, PADDING = 4096, 1024, 256

Array = np.ndarray[Any, Any]


@cache
def contents() -> dict[str, Array]:
    """Return the inputs `[n, 2048]` of each part; no file is in two."""
    rows = [features(path) for path in chosen()]
    unique = list({row.tobytes(): row for row in rows}.values())
    parts, start = {}, 0
    for part, count in PARTS.items():
        share = len(unique) * count // sum(PARTS.values())
        parts[part] = np.stack(unique[start : start + min(share, count)])
        start += share
    return parts


def chosen() -> list[Path]:
    """Return files in random order, at most `PER_SUFFIX` of every suffix."""
    paths = sorted(path for place in PLACES for path in found(place))
    random.Random(0).shuffle(paths)
    taken: Counter[str] = Counter()
    kept = []
    for path in dict.fromkeys(paths):
        suffix = path.suffix.lower()
        if taken[suffix] < PER_SUFFIX and readable(path):
            taken[suffix] += 1
            kept.append(path)
    return kept


def found(place: Path) -> Iterator[Path]:
    """Yield the first files under a folder."""
    files = (Path(folder) / name for folder, folders, names in walked(place) for name in names)
    return islice(files, LOOKED_AT)


def walked(place: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Go through folders in the order of their names."""
    for folder, folders, names in os.walk(place):
        folders.sort()
        yield folder, folders, sorted(names)


def readable(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size >= SMALLEST and os.access(path, os.R_OK)


def features(path: Path) -> Array:
    """Read the first and the last block, stripped, as numbers; what is missing between them is padding."""
    with path.open("rb") as file:
        first = file.read(BLOCK).lstrip()[:KEPT]
        file.seek(max(path.stat().st_size - BLOCK, 0))
        last = file.read(BLOCK).rstrip()[-KEPT:]
    row = np.full(2 * KEPT, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * KEPT - len(last) :] = np.frombuffer(last, np.uint8)
    return row
