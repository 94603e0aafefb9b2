"""Order channels: by importance, by size, with the blocks of a format in mind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group, analyse
from bevel.ir.places import Places, places
from bevel.passes.base import SAMPLES, Context, Doc, Outcome, Pass, Preserving, Promise, Range
from bevel.passes.choice import choose, left_out
from bevel.passes.formats import block_format
from bevel.passes.importance import Aggregate, lift
from bevel.passes.reordering.orders import Arrangement, arranged, contiguous
from bevel.passes.reordering.scores import MEASURES, Size, sizes
from bevel.passes.reordering.search import Search
from bevel.passes.reordering.tables import separate_tables
from bevel.passes.reordering.targets import Target, innermost, put, targets

Array = np.ndarray[Any, Any]

MADE_UP: Final = "activations were measured on made-up inputs, which says little: give some (--calibration)"
MOST_NAMED: Final = 12  # groups of which the notes say what a search gained
_ENTRIES: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class ReorderChannels(Pass):
    """Order channels, heads and features by importance, the most important first, or as a block format likes it.

    What it does: sorts every group that allows any order, on all coupled tensors at once. The function stays the same;
    a prefix of every group is then its best part, which nested models and slicing by hand build on. Where numbers of a
    block share a scale, by=key-norm, a statistic of the activations or a search puts channels of one size together.
    Rotary pairs move with their frequencies, all that share a table alike; tables=apart gives each layer its own.

    Promise: Preserving.

    Example: reorder-channels{by=search format=int4 block=32}

    Source: Devvrit et al. 2024, MatFormer (prefixes as submodels); Trukhanov and Soloveychik 2024, K-sort.
    """

    name: ClassVar[str] = "reorder-channels"
    promise: ClassVar[Promise] = Preserving()

    by: Annotated[
        Literal["importance", "search", Size], Doc("importance, a size, or a search for the least error of a format")
    ] = "importance"
    importance: Annotated[str, Doc("what scores the channels: an installed importance")] = "magnitude"
    aggregate: Annotated[Aggregate | None, Doc("how coupled tensors add up; the importance's own way if none")] = None
    order: Annotated[Arrangement, Doc("the largest first, dealt to blocks, or blocks of one size")] = "descending"
    first: Annotated[tuple[str, ...], Doc("entries to put in front, 3 or 8-11; nothing is scored then")] = ()
    format: Annotated[str, Doc("what the search is for: an installed format")] = "int4"
    block: Annotated[int, Range(2), Doc("entries that share a scale")] = 32
    per_head: Annotated[bool, Doc("order each head by itself where nothing ties them; not by importance")] = True
    tables: Annotated[Literal["shared", "apart"], Doc("one table of angles for all, or one for each layer")] = "shared"
    samples: Annotated[int, Range(1), Doc("inputs to gather statistics from: rows of the first axis")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to reorder; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to leave alone")] = ()

    def __post_init__(self) -> None:
        """Check that there is such a format."""
        super().__post_init__()
        if self.by == "search":
            block_format(self.format)

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Score and sort."""
        context = replace(context, samples=self.samples)
        copies = separate_tables(model) if self.tables == "apart" else 0
        analysis = analyse(model)
        groups = choose(analysis, Freedom.PERMUTE, self.only, self.skip)
        orders, notes = self._orders(analysis, groups, context)
        changed = put(analysis, orders)
        told = [f"{changed} of {len(analysis.groups)} groups reordered", *notes]
        if copies:
            told.append(f"{copies} tables copied, so that layers need not share them")
        return Outcome(notes=(*told, *left_out(analysis.groups, Freedom.PERMUTE)), where=_where(analysis, orders))

    def _orders(
        self, analysis: Analysis, groups: Sequence[Group], context: Context
    ) -> tuple[Mapping[Target, Array], Sequence[str]]:
        """Return the orders of targets, and what to say about them."""
        if self.first:
            return {Target(group): contiguous(group.size, self._first(group))[None] for group in groups}, ()
        if self.by == "importance":
            scores = lift.score(self.importance, analysis, groups, context, self.aggregate)
            by_target = {Target(group): scores[group.name][None] for group in groups if group.name in scores}
            return self._arranged(by_target), scores.notes
        if self.by == "search":
            return self._searched(analysis, innermost(analysis, groups), context)
        found = targets(analysis, groups, per_head=self.per_head)
        guessed = self.by in MEASURES and context.calibration.made_up
        return self._arranged(sizes(self.by, analysis, found, context)), (MADE_UP,) if guessed else ()

    def _arranged(self, scores: Mapping[Target, Array]) -> Mapping[Target, Array]:
        return {target: arranged(found, self.order, self.block) for target, found in scores.items()}

    def _searched(
        self, analysis: Analysis, groups: Sequence[Group], context: Context
    ) -> tuple[Mapping[Target, Array], Sequence[str]]:
        found = targets(analysis, groups, per_head=self.per_head)
        trials = Search(analysis, found, context, block_format(self.format), self.block).run()
        ordered = sorted(trials.items(), key=lambda item: item[1].gain)
        lines = [f"{target.name}: {trial}" for target, trial in ordered if trial.best][:MOST_NAMED]
        kept = sum(trial.best == 0 for trial in trials.values())
        note = f"{len(trials) - kept} of {len(trials)} orders are better than what was there, for {self.format}"
        return {target: trial.order for target, trial in trials.items()}, (f"{note} in blocks of {self.block}", *lines)

    def _first(self, group: Group) -> list[int]:
        """Read which entries go in front."""
        entries = [entry for text in self.first for entry in _entries(text)]
        if max(entries) >= group.size:
            raise UsageError(
                f"there is no entry {max(entries)} in {group.name!r}, which has {group.size}",
                where=f"{self.name}: first",
                remedy="name the groups that are meant (only=...)",
            )
        return entries


def _entries(text: str) -> range:
    """Read a number or a range, both ends included.

    >>> _entries("3"), _entries("8-11")
    (range(3, 4), range(8, 12))
    """
    found = _ENTRIES.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no entry", where="reorder-channels: first", remedy="write 3, or 8-11")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def _where(analysis: Analysis, orders: Mapping[Target, Array]) -> Places | None:
    """Say where entries stand that were put in order; not where heads have orders of their own."""
    if any(target.heads is not None for target in orders):
        return None
    return places(analysis, {target.name: order[0] for target, order in orders.items()})
