"""What edits took of an initializer: along each axis, which places of the original, in which order.

It is kept in `value.meta`, composed over successive edits, so that clones carry it along and files do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.ir.change import Change

KEY: Final = "bevel.cuts"
MIXED: Final = "bevel.mixed"
"""Key in `value.meta` of initializers of which something else was taken than whole places of axes."""


@dataclass(frozen=True, eq=False)
class Cut:
    """The places of an axis that were taken, in order, of `size` that there were.

    `changes` says which of its factors changed: one change, or several where later edits saw another structure.
    """

    size: int
    kept: np.ndarray
    changes: tuple[Change, ...]

    def then(self, later: Cut) -> Cut:
        """Return both cuts as one."""
        *first, last = self.changes
        joined = last.then(later.changes[0])
        changes = (*self.changes, *later.changes) if joined is None else (*first, joined, *later.changes[1:])
        return Cut(self.size, self.kept[later.kept], changes)

    def same(self, other: Cut | None) -> bool:
        """Say whether two cuts take the same."""
        return other is not None and self.size == other.size and np.array_equal(self.kept, other.kept)


def cuts(value: ir.Value) -> Mapping[int, Cut]:
    """Return what was taken of an initializer, by axis; of axes that are not there everything was."""
    found: Mapping[int, Cut] = value.meta.get(KEY, {})
    return found


def record(value: ir.Value, taken: Mapping[int, Cut]) -> None:
    """Note what an edit takes, after what earlier ones took."""
    before = cuts(value)
    value.meta[KEY] = {
        **before,
        **{axis: before[axis].then(cut) if axis in before else cut for axis, cut in taken.items()},
    }


def carry(old: ir.Graph, new: ir.Graph) -> None:
    """Hand what is known of initializers on to those of the same name and shape in a graph that was read again."""
    for name, value in new.initializers.items():
        source = old.initializers.get(name)
        if source is not None and source.shape == value.shape:
            value.metadata_props.update(source.metadata_props)
            value.meta.update(source.meta)
