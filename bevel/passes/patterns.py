"""Names and patterns: `*` and `?` stand for anything."""

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase


def matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Say whether some pattern means one of some names.

    >>> matches(["blocks.0.up.weight", "MatMul_3"], ["*.up.*"])
    True
    """
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def asked(names: Collection[str], only: Sequence[str], skip: Sequence[str]) -> bool:
    """Say whether one of the names matches `only`, if that has any patterns, and none matches `skip`."""
    return (not only or matches(names, only)) and not matches(names, skip)
