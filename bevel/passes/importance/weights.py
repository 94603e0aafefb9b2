"""Read the weights of groups one at a time and reduce each to a number per entry."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import Axis, Dim, places
from bevel.ir.content import content
from bevel.ir.groups import Analysis, Group, Member
from bevel.passes.base import Context


@dataclass(frozen=True)
class Read:
    """A weight as [before, places of an axis, after], and the groups that stand on that axis."""

    value: ir.Value
    position: int
    array: np.ndarray
    axis: Axis
    owners: tuple[Group, ...]

    def lift(self, numbers: np.ndarray, group: Group) -> np.ndarray:
        """Add a number for each place of the axis up to one for each entry of a group."""
        return lifted(numbers, self.axis, group.dim)

    def filters(self, group: Group) -> np.ndarray:
        """Return the weights that each entry of a group owns, as rows."""
        rows = []
        for place in places(self.axis, group.dim):
            order = np.argsort(place, kind="stable")[np.count_nonzero(place < 0) :]
            owned = self.array[:, order].reshape(
                len(self.array), group.size, -1
            )  # an entry's places, then what is after
            rows.append(owned.transpose(1, 0, 2).reshape(group.size, -1))
        return np.concatenate(rows, 1)


def lifted(numbers: np.ndarray, axis: Axis, dim: Dim) -> np.ndarray:
    """Add a number for each place of an axis up to one for each entry of a dimension.

    >>> from bevel.ir.axes import product
    >>> heads, width = Dim(2), Dim(3)
    >>> lifted(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), product(heads, width), heads)
    array([ 6., 15.])
    """
    total = np.zeros(dim.size)
    for place in places(axis, dim):
        owned = place >= 0
        total += np.bincount(place[owned], numbers[owned], dim.size)
    return total


def read(analysis: Analysis, groups: Sequence[Group], context: Context) -> Iterator[Read]:
    """Yield each weight that counts for some group, by the axes that hold the groups; no array may be kept.

    Vectors (biases, normalisation parameters) count only where a group has nothing else.
    """
    wanted = _by_tensor(groups)
    for done, (value, owners) in enumerate(wanted.items()):
        context.progress("scoring", done, len(wanted))
        axes = analysis.axes(value)
        assert axes is not None and value.const_value is not None
        with content(value.const_value) as array:
            for axis in sorted({member.axis for _, member in owners}):
                standing = tuple(group for group, member in owners if member.axis == axis)
                yield Read(value, axis, flat(array, axis), axes[axis], standing)
    context.progress("scoring", len(wanted), len(wanted))


def reduced(
    analysis: Analysis, groups: Sequence[Group], context: Context, reduce: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return parts [tensors, size] for each group; `reduce` makes [places] of a weight [before, places, after]."""
    return gathered(analysis, groups, context, lambda weight: reduce(weight.array))


def gathered(
    analysis: Analysis, groups: Sequence[Group], context: Context, reduce: Callable[[Read], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return parts [tensors, size] for each group; `reduce` makes a number for each place of a weight's axis."""
    parts: dict[str, list[np.ndarray]] = {group.name: [] for group in groups}
    for weight in read(analysis, groups, context):
        numbers = reduce(weight).astype(np.float64)
        for group in weight.owners:
            parts[group.name].append(weight.lift(numbers, group))
    return {group.name: np.array(parts[group.name]).reshape(-1, group.size) for group in groups}


def energies(analysis: Analysis, groups: Sequence[Group], context: Context) -> dict[str, np.ndarray]:
    """Return the sum of squares that each entry has in each tensor of its group: [tensors, size]."""
    return reduced(analysis, groups, context, sum_of_squares)


def sum_of_squares(array: np.ndarray) -> np.ndarray:
    """Sum the squares, without a copy of the array.

    >>> sum_of_squares(np.array([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]))
    array([ 5., 11.])
    """
    before, size, after = array.shape
    if before == 1:
        energy: np.ndarray = np.einsum("anb,anb->n", array, array)
    else:  # whole rows at once: the few taps of a kernel are too short a loop
        rows = array.reshape(before, size * after)
        energy = np.einsum("ak,ak->k", rows, rows).reshape(size, after).sum(1)
    return energy


def _by_tensor(groups: Sequence[Group]) -> dict[ir.Value, list[tuple[Group, Member]]]:
    """List which groups each weight counts for; an axis that holds a group's dimension twice counts once."""
    wanted: dict[ir.Value, list[tuple[Group, Member]]] = {}
    for group in groups:
        floats = [member for member in group.members if is_float(member.value)]
        matrices = [member for member in floats if _rank(member.value) > 1]
        axes = {(member.value, member.axis): member for member in matrices or floats}
        for (value, _), member in axes.items():
            wanted.setdefault(value, []).append((group, member))
    return wanted


def flat(array: np.ndarray, axis: int) -> np.ndarray:
    """Return an array as [before, places of an axis, after], half precision as float32."""
    shape = array.shape
    joined = array.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))
    return joined if joined.dtype in (np.float32, np.float64) else joined.astype(np.float32)


def is_float(value: ir.Value) -> bool:
    """Say whether a value is an initializer of floats."""
    return value.const_value is not None and value.const_value.dtype.is_floating_point()


def _rank(value: ir.Value) -> int:
    return 0 if value.const_value is None else len(value.const_value.shape)
