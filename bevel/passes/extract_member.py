"""Take a smaller network out of a nested one."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir

from bevel.errors import UnsupportedModel, UsageError
from bevel.ir import nested
from bevel.ir.edit import entries, mask, select
from bevel.ir.groups import Analysis, analyse
from bevel.ir.nested import Nest, checksum, entries_of, share
from bevel.ir.places import places
from bevel.passes.base import Context, Doc, Masked, Outcome, Pass, Promise, Range

AGAIN = "nest the model again, after the passes that change it"


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
        self._check(nest, analysis)
        widths = {name: entries_of(size, self._share(name)) for name, size in nest.groups.items()}
        keeps = {name: np.arange(width) for name, width in widths.items() if width < nest.groups[name]}
        fits = self._fits(nest, widths, model)
        select(analysis, keeps)
        taken = {analysis[name].dim: keep for name, keep in keeps.items()}
        for weight, tensor in fits.items():
            value = model.graph.initializers[weight]
            left = [entries(axis, taken) for axis in analysis.axes(value) or ()]
            value.const_value = ir.tensor(tensor.numpy()[np.ix_(*left)], name=weight)
        nested.remove(model)

        def reference(given: ir.Model) -> None:
            for weight, tensor in fits.items():
                given.graph.initializers[weight].const_value = tensor
            mask(given, keeps)

        notes = (f"{len(keeps)} groups cut, {len(fits)} weights as they were fitted to that width",)
        return Outcome(reference, notes, where=places(analysis, keeps))

    def _check(self, nest: Nest, analysis: Analysis) -> None:
        """Refuse a model whose groups are not those that were ordered."""
        for name, size in nest.groups.items():
            if name not in analysis.by_name or analysis[name].size != size:
                raise UnsupportedModel(
                    f"its group {name!r} had {size} entries when it was nested", where=self.name, remedy=AGAIN
                )

    def _fits(self, nest: Nest, widths: Mapping[str, int], model: ir.Model) -> dict[str, ir.TensorProtocol]:
        """Return what was fitted to some widths, by the weight that it stands in for; refuse what fits no more."""
        initializers, found = model.graph.initializers, {}
        for fit in nest.fits:
            if widths.get(fit.group) != fit.width or fit.stored not in initializers:
                continue
            if fit.weight not in initializers or checksum(initializers[fit.weight]) != fit.checksum:
                raise UnsupportedModel(
                    f"{fit.weight!r} changed after it was nested, so that what was fitted in its place fits no more",
                    where=self.name,
                    remedy=AGAIN,
                )
            stored = initializers[fit.stored].const_value
            assert stored is not None
            found[fit.weight] = stored
        return found

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
