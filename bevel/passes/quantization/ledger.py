"""What was quantized, how it is stored and what it lost: sentences for the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from statistics import median
from typing import Any, Final

import onnx_ir as ir

from bevel.ir.cost import cost
from bevel.passes.quantization.branches import Branched
from bevel.passes.quantization.forms import Found, Storage
from bevel.passes.quantization.kernels import ACCURACY, Kernel, Shared
from bevel.passes.quantization.standard import Dequantized
from bevel.passes.quantization.targets import Target
from bevel.passes.quantization.writing import Stored
from bevel.passes.sentences import by_reason, listed

# How many weights are named before the rest are counted.
NAMED: Final = 4
WORST: Final = 3


@dataclass(frozen=True)
class Entry:
    """One weight: its bytes before, how it is stored, why not as wished, and its relative error."""

    form: Storage[Any]
    why: str
    error: float = nan
    output_error: float = nan

    @property
    def target(self) -> Target:
        """The weight."""
        return self.form.target

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.target.name


@dataclass(frozen=True, eq=False)
class Result:
    """A weight in its format, what is stored of it, and its relative errors; of the output NaN if nobody looked."""

    found: Found
    stored: Stored
    error: float
    output_error: float


def units(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return entries in their order; those that share a projection together, where the first of them is."""
    found: dict[object, list[Entry]] = {}
    for entry in entries:
        shared = entry.form.projection if isinstance(entry.form, Branched) else None
        found.setdefault(entry if shared is None else shared, []).append(entry)
    return list(found.values())


@dataclass
class Ledger:
    """The weights so far, why others were left alone, and what else is to be said.

    `repairs` says that thin matrices are asked for.
    """

    left: dict[str, str]
    repairs: bool = False
    entries: list[Entry] = field(default_factory=list)
    more: list[str] = field(default_factory=list)

    def take(self, entry: Entry, result: Result | None) -> Iterator[Stored]:
        """Note what became of a weight, and yield what is stored of it, if anything."""
        if result is None:
            self.left[entry.name] = "not finite"
            return
        self.entries.append(replace(entry, error=result.error, output_error=result.output_error))
        yield result.stored

    def notes(self, model: ir.Model) -> Iterator[str]:
        """Say how many weights are quantized and what that gains, how they are stored, and what they lost."""
        if self.entries:
            before, after = (
                sum(each.target.tensor.nbytes for each in self.entries),
                sum(each.form.nbytes for each in self.entries),
            )
            size = sum(each.target.tensor.size for each in self.entries)
            rest = cost(model).bytes - after
            yield (
                f"{len(self.entries)} weights take {after / 1e6:.3g} MB instead of {before / 1e6:.3g}, "
                f"{after * 8 / size:.3g} bits an element; all others {rest / 1e6:.3g} MB"
            )
        else:
            yield "no weight was quantized"
        yield from self._stored()
        yield from self._beside()
        yield from self.more
        for why, names in by_reason(self.left).items():
            yield f"left alone, {why}: {listed(names, NAMED)}"
        yield from self._errors("weight", {each.name: each.error for each in self.entries})
        yield from self._errors("layer's output", {each.name: each.output_error for each in self.entries})

    def _stored(self) -> Iterator[str]:
        kernels = [each for each in self.entries if isinstance(each.form.stem, Kernel | Shared)]
        if kernels:
            yield (
                f"{len(kernels)} are read by kernels of ONNX Runtime; products round activations to 8 bits as well "
                f"(accuracy level {ACCURACY})"
            )
        if plain := [each for each in self.entries if isinstance(each.form.stem, Dequantized)]:
            yield f"{len(plain)} are in front of DequantizeLinear, which ONNX Runtime fuses with the product"
        slow = {
            each.name: each.why
            for each in self.entries
            if not isinstance(each.form.stem, Kernel | Shared | Dequantized)
        }
        for why, names in by_reason(slow).items():
            reason = f", {why}" if why else ""
            yield f"small in the file, floats again when loaded{reason}: {listed(names, NAMED)}"

    def _beside(self) -> Iterator[str]:
        branches = [each.form for each in self.entries if isinstance(each.form, Branched)]
        if branches:
            more = sum(each.nbytes - each.inner.nbytes for each in branches)
            shared = sum(not each.owns for each in branches)
            siblings = f"; {shared} share the first of both with a sibling" if shared else ""
            yield f"{len(branches)} have thin matrices beside them, {more / 1e6:.3g} MB of that{siblings}"
        if self.repairs and (plain := [each.name for each in self.entries if not isinstance(each.form, Branched)]):
            yield f"no place beside the codes, or larger than they are: thin matrices of {listed(plain, NAMED)}"

    def _errors(self, what: str, errors: Mapping[str, float]) -> Iterator[str]:
        known = {name: error for name, error in errors.items() if error >= 0}
        if known:
            worst, middle = max(known, key=lambda name: known[name]), median(known.values())
            yield f"error of a {what}, relative: {middle:.2g} median, {known[worst]:.2g} worst ({worst})"

    @property
    def worst(self) -> tuple[str, ...]:
        """The weights that lost most, the worst first."""
        known = [(each.error, each.name) for each in self.entries if each.error >= 0]
        return tuple(f"{name} (relative error {error:.2g})" for error, name in sorted(known, reverse=True)[:WORST])
