"""What became of each layer, in words."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from bevel.passes.activations.errors import decibel
from bevel.passes.activations.sites import Site
from bevel.passes.sentences import by_reason, listed

MOST_NAMED: Final = 8


@dataclass
class Ledger:
    """The layers that are quantized with the error of their own output, and why others are not."""

    left: dict[str, str]
    errors: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def leave(self, site: Site, why: str) -> None:
        """Note that a layer stays in floats."""
        self.errors.pop(site.title, None)
        self.left[site.title] = why

    def keep(self, site: Site, error: float) -> None:
        """Note that a layer computes in 8 bits."""
        self.errors[site.title] = max(error, self.errors.get(site.title, 0.0))

    @property
    def worst(self) -> tuple[str, ...]:
        """The layers whose own output is farthest off."""
        return tuple(self._order[:MOST_NAMED])

    @property
    def _order(self) -> list[str]:
        return sorted(self.errors, key=lambda name: -self.errors[name])

    def notes(self) -> Iterator[str]:
        """Say how many layers compute in 8 bits, what they lose, and which do not."""
        yield f"{len(self.errors)} of {len(self.errors) + len(self.left)} layers compute in 8 bits"
        if self.errors:
            shown = [f"{name} {self.errors[name]:.2g} ({decibel(self.errors[name])})" for name in self._order]
            yield f"relative error of a layer's own output, worst first: {listed(shown, MOST_NAMED)}"
        yield from self.remarks
        for why, names in by_reason(self.left).items():
            yield f"left in floats: {listed(names, MOST_NAMED)}: {why}"
