"""Choose the codes of two residual blocks together, window after window (CBQ).

What a layer loses, others can make up for, in the same block and in the next. So once every layer has its codes, two
neighbouring blocks at a time run on what the quantized blocks before them give, and their codes and scales go down the
slope of the squared error of the second block's output, against what it is with the weights as they were. The next
window starts with the second block of this one, whose codes may change once more. What errs no less afterwards stays
as it was.

Source: Ding et al. 2024, CBQ: Cross-Block Quantization for Large Language Models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import median
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import UnsupportedModel
from bevel.ir.blocks import find_blocks
from bevel.passes.base import Context
from bevel.passes.fitting.walk import Walk
from bevel.passes.formats import Format, Grid, Quantized
from bevel.passes.formats.blocks import arrangement, join
from bevel.passes.importance.slopes import batches
from bevel.passes.quantization.forms import Found
from bevel.passes.quantization.ledger import Entry, Result
from bevel.passes.quantization.methods import errors
from bevel.passes.quantization.writing import Shown, stored

Array = np.ndarray[Any, Any]
Results: TypeAlias = dict[Entry, Result | None]

# How many blocks are looked at together; each begins one block after the last.
WINDOW: Final = 2
# Samples that a step looks at: more where there are more than so many such feeds.
ROWS: Final = 4
FEEDS: Final = 32
# A weight that stands on the upper code or above leans to it by no more than this: the code it has is that taken first.
MOST: Final = 1 - 1e-6


@dataclass(frozen=True)
class Window:
    """Weights whose codes are chosen together, in the order of the graph, and the value that they are to give."""

    entries: tuple[Entry, ...]
    end: ir.Value


@dataclass(frozen=True)
class Said:
    """What became of the windows: their errors before and after, and why torch cannot run others."""

    errors: Sequence[tuple[float, float]]
    left: Mapping[str, int]
    entries: int

    def __iter__(self) -> Iterator[str]:
        if not self.errors and not self.left:
            yield "no residual block has weights for cbq: all are chosen layer by layer"
        if self.errors:
            first, last = (median(each) for each in zip(*self.errors, strict=True))
            better = sum(after < before for before, after in self.errors)
            yield (
                f"{self.entries} weights in {len(self.errors)} windows of residual blocks, {better} better than "
                f"layer by layer: error of a window's output {first:.2g} before, {last:.2g} now (median)"
            )
        for why, count in self.left.items():
            yield f"{count} windows stay as layer by layer, torch cannot run them: {why}"


def windows(model: ir.Model, entries: Sequence[Entry]) -> list[Window]:
    """Return the windows of a model: neighbouring residual blocks that have weights among some."""
    by_node = {entry.target.node: entry for entry in entries}
    held = [
        (block.end, [by_node[node] for node in block.nodes if node in by_node])
        for block in find_blocks(model).innermost
    ]
    held = [each for each in held if each[1]]
    several = [held[start : start + WINDOW] for start in range(max(len(held) - WINDOW + 1, 1))] if held else []
    return [Window(tuple(entry for _, some in each for entry in some), each[-1][0]) for each in several]


class CrossBlock:
    """Goes through the windows of a model. Raises `UsageError` at once where PyTorch is not installed."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self._model, self._context = model, context
        self._choose = context.runtime.rounding()

    def __call__(self, results: Results, shown: Shown) -> Said:
        """Put better results in place of those found window by window, and say how much better."""
        order = {node: place for place, node in enumerate(self._model.graph)}
        known = {entry: each.found for entry, each in results.items() if each is not None}
        found = windows(self._model, [entry for entry, each in known.items() if isinstance(each, Quantized)])
        waiting = sorted(known, key=lambda entry: order[entry.target.node])
        before = dict(known)
        feeds = batches(self._model, self._context, max(ROWS, self._context.samples // FEEDS))
        walk = Walk(self._model, feeds, self._context.runtime)
        gained: list[tuple[float, float]] = []
        left: dict[str, int] = {}
        for done, window in enumerate(found):
            self._context.progress("windows", done, len(found))
            first = min((entry.target.node for entry in window.entries), key=order.__getitem__)
            passed = [entry for entry in waiting if order[entry.target.node] < order[first]]
            waiting = waiting[len(passed) :]
            shown.show_alone([(entry.target, known[entry]) for entry in passed])
            walk.reach(first)
            shown.show_alone([])
            try:
                gained.append(self._window(window, walk, known))
            except UnsupportedModel as error:
                why = f"{error.where}: {error.what}" if error.where else error.what
                left[why] = left.get(why, 0) + 1
        self._context.progress("windows", len(found), len(found))
        results.update({entry: _result(entry, each) for entry, each in known.items() if each is not before[entry]})
        return Said(gained, left, len({entry for window in found for entry in window.entries}))

    def _window(self, window: Window, walk: Walk, known: dict[Entry, Found]) -> tuple[float, float]:
        """Choose the codes of a window, and return the error of its output before and after."""
        model, feeds = walk.stretch(window.end)
        inside = [entry for entry in window.entries if entry.name in model.graph.initializers]
        between = {entry.name: doubts(entry, known[entry]) for entry in inside}
        chosen, before, after = self._choose(
            model, feeds, walk.ahead(window.end), {name: doubt.given for name, doubt in between.items()}, 0
        )
        if not after < before:
            return before, before
        for entry in inside:
            known[entry] = between[entry.name].settled(*chosen[entry.name])
        return before, after


@dataclass(frozen=True)
class Doubt:
    """A quantized weight, the lower of the two codes that each place may have, and what torch is given."""

    found: Quantized
    low: Array
    given: Mapping[str, Any]

    def settled(self, upper: Array, growth: Array) -> Quantized:
        """Return the weight with the codes taken, and its scales as they were learnt."""
        codes = (self.low + upper).astype(np.uint8)
        if not growth.size:
            return replace(self.found, codes=codes)
        scale = (self.found.scale * growth.reshape(self.found.scale.shape)).astype(np.float32)
        return replace(self.found, codes=codes, scale=scale)


def doubts(entry: Entry, found: Found) -> Doubt:
    """Return the codes that a weight may have: the one it has, and the next one on the other side of its value."""
    assert isinstance(found, Quantized)
    fmt, grid = found.format, _everywhere(found)
    beside = found.decode() - Quantized.decode(found)
    with entry.target.reading() as matrix:
        low, given = _choices(fmt, matrix - beside, found.codes, grid)
    blocks = arrangement(found.codes.shape, found.axis, found.block)
    fixed = found.axis == "both" or fmt.scales(found.base) is not None
    more = {"beside": beside if beside.any() else None, "blocks": None if fixed else blocks}
    return Doubt(found, low, given | more)


def _choices(fmt: Format, matrix: Array, codes: Array, grid: Grid) -> tuple[Array, dict[str, Any]]:
    """Return the lower codes, their values, the gaps to the upper ones, and how weights lean to those.

    A weight leans half to the code it has, and half to where it stands between both.
    """
    beyond = (matrix - fmt.values(codes, grid)) / grid.scale > 0
    low = np.clip(codes.astype(np.int16) - ~beyond, 0, len(fmt.levels) - 2).astype(np.uint8)
    least = fmt.values(low, grid)
    gap = fmt.values(low + np.uint8(1), grid) - least
    share = np.divide(matrix - least, gap, out=np.full_like(gap, 0.5), where=gap != 0).clip(0, MOST)
    lean = (share + (codes != low) - 1) / 2
    return low, {"low": least, "gap": gap, "lean": lean.astype(np.float32)}


def _everywhere(found: Quantized) -> Grid:
    """Return scale and zero point of every element of a matrix."""
    shape = arrangement(found.codes.shape, found.axis, found.block)

    def whole(array: Array) -> Array:
        return join(np.ascontiguousarray(np.broadcast_to(array, shape)), found.codes.shape, found.axis)

    grid = found.grid
    return Grid(whole(grid.scale), None if grid.zero is None else whole(grid.zero))


def _result(entry: Entry, found: Found) -> Result:
    with entry.target.reading() as matrix:
        lost, _ = errors(entry.target, matrix, found.decode(), None)
    return Result(found, stored(entry.form, found), lost, nan)
