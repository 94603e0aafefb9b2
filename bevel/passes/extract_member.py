"""Take a smaller network out of a nested one."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.ir import nested
from bevel.ir.edit import mask, select
from bevel.ir.groups import analyse
from bevel.ir.nested import Nest
from bevel.passes.base import Context, Doc, Masked, Outcome, Pass, Promise, Range
from bevel.passes.nest import entries_of, share


@dataclass(frozen=True)
class ExtractMember(Pass):
    """Take the member of chosen widths out of a nested model.

    What it does: keeps the first entries of every group that `nest` ordered, and puts the weights in that were fitted
    to that width, where there are such; what the nested model kept for other members is left out. No data is needed.

    Promise: Masked. The result computes what the nested model computes with the fitted weights at their places and the
    consumers of the other entries zeroed.

    Example: extract-member{width=0.5 mix="*.mlp.*=0.25"}

    Source: Devvrit et al. 2024, MatFormer (Mix'n'Match).
    """

    name: ClassVar[str] = "extract-member"
    promise: ClassVar[Promise] = Masked()

    width: Annotated[float, Range(0, 1), Doc("share of every group's entries to keep")] = 0.5
    mix: Annotated[tuple[str, ...], Doc("other widths for some groups: PATTERN=SHARE, the last that fits counts")] = ()

    def __post_init__(self) -> None:
        """Check that the widths are shares."""
        super().__post_init__()
        self._mix()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Cut, and put the fitted weights in."""
        nest = nested.read(model)
        analysis = analyse(model)
        widths = {name: entries_of(size, self._share(name)) for name, size in nest.groups.items()}
        keeps = {name: np.arange(width) for name, width in widths.items() if width < analysis[name].size}
        fitted = _put(model, nest, widths)
        nested.remove(model)
        select(analysis, keeps)

        def reference(given: ir.Model) -> None:
            _put(given, nest, widths)
            mask(given, keeps)

        return Outcome(reference, (f"{len(keeps)} groups cut, {fitted} weights as they were fitted to that width",))

    def _mix(self) -> list[tuple[str, float]]:
        """Return the patterns with their shares."""
        found = []
        for text in self.mix:
            pattern, equals, number = text.rpartition("=")
            if not equals:
                raise UsageError(f"{text!r} is no PATTERN=SHARE", where=self.name, remedy='write mix="*.mlp.*=0.25"')
            found.append((pattern, share(number, self.name)))
        return found

    def _share(self, name: str) -> float:
        parts = [part for pattern, part in self._mix() if name == pattern or fnmatchcase(name, pattern)]
        return parts[-1] if parts else self.width


def _put(model: ir.Model, nest: Nest, widths: Mapping[str, int]) -> int:
    """Give the layers of a nested model, still whole, the weights that were fitted to some widths; return how many."""
    initializers, count = model.graph.initializers, 0
    for fit in nest.fits:
        if widths[fit.group] == fit.width and fit.stored in initializers and fit.weight in initializers:
            initializers[fit.weight].const_value = initializers[fit.stored].const_value
            count += 1
    return count
