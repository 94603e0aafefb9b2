"""What is installed: passes, importances, rules, lowerings, formats, frontends and backends, by name.

Bevel's own come through the same door as a plugin's: entry points. Listing names imports nothing; a class is loaded
when it is asked for by name.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bevel.errors import UsageError, nearest

OWN_DISTRIBUTION = "bevel"


class Registry(Mapping[str, Any]):
    """The entry points of one group, loaded when they are looked up.

    A name that is not there is a `UsageError` with the nearest one; a plugin that cannot be imported is a `UsageError`
    which names the distribution it came from.
    """

    def __init__(self, group: str, noun: str) -> None:
        self.group = group
        self.noun = noun
        self._points = _points(group)

    def __getitem__(self, name: str) -> Any:
        if name not in self._points:
            raise UsageError(f"no {self.noun} is called {name!r}", remedy=nearest(name, self._points))
        return _load(self._points[name])

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def origin(self, name: str) -> str:
        """Return the distribution that provides `name`, as `name version`."""
        return _distribution(self._points[name])


def passes() -> Registry:
    """Return every installed pass by name."""
    return Registry("bevel.passes", "pass")


def importances() -> Registry:
    """Return every installed importance (what scores channels) by name."""
    return Registry("bevel.importances", "importance")


def splitters() -> Registry:
    """Return every installed splitter (what divides a layer's hidden entries among experts) by name."""
    return Registry("bevel.splitters", "splitter")


def routers() -> Registry:
    """Return every installed router (what makes the scores of experts) by name."""
    return Registry("bevel.routers", "router")


def formats() -> Registry:
    """Return every installed format of quantized numbers by name."""
    return Registry("bevel.formats", "format")


def rules() -> Registry:
    """Return the installed modules of operator rules by name; loading one registers its rules."""
    return Registry("bevel.rules", "set of rules")


def lowerings() -> Registry:
    """Return the installed modules of torch functions for operators by name; loading one registers its functions."""
    return Registry("bevel.lowerings", "set of lowerings")


def frontends() -> Registry:
    """Return every installed frontend by the name of the package whose classes it reads."""
    return Registry("bevel.frontends", "frontend")


def _points(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of `group` by name; refuse a name that two distributions claim."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(_entry_points(group), key=lambda point: (point.name, point.value)):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise UsageError(
                f"{point.name!r} is provided by both {_distribution(other)} and {_distribution(point)}",
                where=group,
                remedy="uninstall one of them",
            )
        found[point.name] = point
    return found


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _load(point: EntryPoint) -> Any:
    """Import what `point` names; the errors a foreign import can raise become one that says whose it is."""
    try:
        return point.load()
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError, NameError) as error:
        raise UsageError(
            f"{point.name!r} cannot be loaded from {point.value}: {error}",
            where=_distribution(point),
            remedy="reinstall or upgrade that package, or uninstall it",
        ) from error


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
