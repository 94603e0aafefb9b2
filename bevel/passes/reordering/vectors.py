"""Activations as vectors along a head, and their sizes channel by channel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import CalibrationError
from bevel.ir.axes import Axis, Dim, Product, atoms, product, resolve
from bevel.ir.groups import Analysis
from bevel.ir.sizes import is_symbolic
from bevel.passes.base import Context
from bevel.passes.fitting.walk import Walk
from bevel.passes.reordering.held import Held, Holdings
from bevel.passes.reordering.targets import Target

Array = np.ndarray[Any, Any]
Measure: TypeAlias = Literal["absmax", "absmean", "rms"]

# Vectors that are kept of a feed to compare orders by their errors; sizes are measured on all.
MOST_KEPT: Final = 512


@dataclass
class Vectors:
    """What was seen of one activation, `[vectors, heads, width]`; some are kept, if they are keys."""

    target: Target
    held: Held
    layout: "Layout"
    count: int = 0
    largest: Array = field(default_factory=lambda: np.zeros(()))
    total: Array = field(default_factory=lambda: np.zeros(()))
    square: Array = field(default_factory=lambda: np.zeros(()))
    kept: list[Array] = field(default_factory=list)

    def see(self, vectors: Array, most: int) -> None:
        """Take the vectors of one more feed into account, and keep at most so many of them, if they are keys."""
        sizes = np.abs(vectors, dtype=np.float64)
        self.count += len(vectors)
        self.largest = np.maximum(self.largest, sizes.max(0, initial=0.0))
        self.total = self.total + sizes.sum(0)
        self.square = self.square + np.square(sizes).sum(0)
        if self.held.keys:
            self.kept.append(vectors[:: -(-len(vectors) // most) or 1].astype(np.float32))

    def sizes(self, measure: Measure) -> Array:
        """Return the size of each entry of each head, `[heads, size]`: of its channels, the largest."""
        count = max(self.count, 1)
        found = {"absmax": self.largest, "absmean": self.total / count, "rms": np.sqrt(self.square / count)}[measure]
        return np.concatenate(
            [each.lifted(row, self.layout.width) for each, row in zip(self._apart(len(found)), found, strict=True)]
        )

    def places(self, orders: Array) -> Array:
        """Return from where each place of each head is taken, `[heads, width]`."""
        heads = self.largest.shape[0]
        rows = [orders] if heads == 1 else np.split(orders, heads)
        return np.stack(
            [each.places(self.layout.width, row) for each, row in zip(self._apart(heads), rows, strict=True)]
        )

    def _apart(self, heads: int) -> list[Target]:
        """Return what each row is of: the whole target, or the group in one of its heads."""
        return [self.target] if heads == 1 else [Target(self.target.group)] * heads


def watch(
    analysis: Analysis, targets: Sequence[Target], context: Context, most: int = MOST_KEPT
) -> dict[Target, list[Vectors]]:
    """Run the model on the context's samples and return what was seen of each target, where it is held.

    At most so many keys are kept of a feed.
    """
    holdings = Holdings(analysis)
    by_node: dict[ir.Node, list[tuple[Target, Held]]] = {}
    for target in targets:
        for held in holdings.held(target):
            by_node.setdefault(held.node, []).append((target, held))
    walk = Walk(analysis.model, context.calibration.samples(context.samples), context.runtime)
    found: dict[Target, list[Vectors]] = {target: [] for target in targets}
    for node in analysis.model.graph:
        for target, held in by_node.get(node, ()):
            walk.reach(node)
            seen = _empty(analysis, target, held)
            for vectors in map(seen.layout.vectors, walk.values(held.value)):
                seen.see(vectors, most)
            if not seen.count:
                raise CalibrationError("there is no input to take statistics of", where=context.calibration.source)
            found[target].append(seen)
    return found


def _empty(analysis: Analysis, target: Target, held: Held) -> Vectors:
    heads = None if target.heads is None else target.heads.dim
    return Vectors(target, held, Layout.of(analysis.axes(held.value) or (), held.axis, target.group.dim, heads))


@dataclass(frozen=True)
class Layout:
    """How the axes of an activation fall apart into factors: which one is heads, and which ones, together, a head."""

    factors: tuple[tuple[Axis, ...], ...]
    axis: int
    place: int
    heads: Dim | None

    @staticmethod
    def of(axes: Sequence[Axis], axis: int, inner: Dim, heads: Dim | None) -> "Layout":
        """Lay out an activation with a dimension on an axis."""
        factors = tuple(_factors(each) for each in axes)
        place = next(place for place, factor in enumerate(factors[axis]) if inner in atoms(factor))
        return Layout(factors, axis, place, heads)

    @property
    def width(self) -> Axis:
        """The axis of a head: the factor with the dimension, and those inside of it."""
        return product(*self.factors[self.axis][self.place :])

    def vectors(self, array: Array) -> Array:
        """Return an array as `[vectors, heads, width]`: one head, where heads are no factor of their own."""
        sizes = [list(_sizes(size, each)) for size, each in zip(array.shape, self.factors, strict=True)]
        flat = [factor for each in self.factors for factor in each]
        start = sum(map(len, self.factors[: self.axis])) + self.place
        stop = start + len(self.factors[self.axis]) - self.place
        heads = [place for place, factor in enumerate(flat) if factor is self.heads and not start <= place < stop][:1]
        others = [place for place in range(len(flat)) if place not in heads and not start <= place < stop]
        spread = array.reshape([size for each in sizes for size in each])
        moved = spread.transpose([*others, *heads, *range(start, stop)])
        count = prod(moved.shape[place] for place in range(len(others), len(others) + len(heads)))
        return moved.reshape(-1, count, prod(moved.shape[len(others) + len(heads) :]))


def _factors(axis: Axis) -> tuple[Axis, ...]:
    axis = resolve(axis)
    return axis.factors if isinstance(axis, Product) and axis.factors else (axis,)


def _sizes(size: int, factors: Sequence[Axis]) -> Iterator[int]:
    """Yield the sizes of an axis's factors as they are at run time; the first that only that tells has the rest."""
    left = size // prod(factor.size for factor in factors if not is_symbolic(factor.size))
    for factor in factors:
        yield left if is_symbolic(factor.size) else factor.size
        left = 1 if is_symbolic(factor.size) else left
