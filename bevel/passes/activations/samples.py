"""Which of the calibration inputs ranges are made of, and which are held back to measure errors on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bevel.passes.base import Context
from bevel.passes.calibration import Feed

# One feed of so many is held back.
HELD: Final = 4


@dataclass(frozen=True)
class Samples:
    """The feeds of a context, `count` samples of them, divided; a single feed is on both sides."""

    context: Context
    count: int

    @property
    def divided(self) -> bool:
        """Whether errors are measured on other feeds than ranges are made of."""
        return self.feeds > 1

    @property
    def feeds(self) -> int:
        """How many feeds there are."""
        return sum(1 for _ in self.context.calibration.samples(self.count))

    def fitting(self) -> Iterator[Feed]:
        """Yield the feeds that ranges are made of."""
        return self._part(held=False)

    def held(self) -> Iterator[Feed]:
        """Yield the feeds that errors are measured on."""
        return self._part(held=True)

    def _part(self, *, held: bool) -> Iterator[Feed]:
        feeds = self.feeds
        for place, feed in enumerate(self.context.calibration.samples(self.count)):
            if feeds == 1 or (place % HELD == min(HELD, feeds) - 1) is held:
                yield feed
