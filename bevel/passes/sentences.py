"""Parts of sentences for the report."""

from collections.abc import Mapping, Sequence


def listed(names: Sequence[str], most: int) -> str:
    """Name some, count the rest.

    >>> listed(["a", "b", "c", "d", "e", "f"], 4)
    'a, b, c, d and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names for each reason, in their order."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found
