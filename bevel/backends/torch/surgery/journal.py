"""Changes to a module that can be taken back: whatever stops the work, the module is as it was."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, NamedTuple

MISSING: Final = object()


class Write(NamedTuple):
    """An attribute that was set, and what it held before (`MISSING` if there was none); `place` names its owner."""

    owner: Any
    name: str
    before: Any
    place: str


class Journal:
    """Sets attributes and remembers what they held; used in a `with`, an error takes everything back."""

    def __init__(self) -> None:
        self._writes: list[Write] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.restore()

    @property
    def writes(self) -> tuple[Write, ...]:
        """What was set and stands."""
        return tuple(self._writes)

    def set(self, owner: Any, name: str, value: Any, place: str = "") -> None:
        """Set an attribute, parameter, buffer or class."""
        self._writes.append(Write(owner, name, getattr(owner, name, MISSING), place))
        setattr(owner, name, value)

    def mark(self) -> int:
        """Return where the journal stands, to go back there."""
        return len(self._writes)

    def restore(self, mark: int = 0) -> None:
        """Take back what was written since a mark, the last first."""
        while len(self._writes) > mark:
            owner, name, before, _ = self._writes.pop()
            if before is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
