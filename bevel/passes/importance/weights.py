"""Read the weights of groups one at a time and reduce each to a number per entry."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import Axis, places
from bevel.ir.content import content
from bevel.ir.groups import Analysis, Group, Member
from bevel.passes.base import Context


@dataclass(frozen=True)
class Read:
    """A weight as [before, places of an axis, after], and the groups that stand on that axis."""

    array: np.ndarray
    axis: Axis
    owners: tuple[Group, ...]

    def lift(self, numbers: np.ndarray, group: Group) -> np.ndarray:
        """Add a number for each place of the axis up to one for each entry of a group."""
        lifted = np.zeros(group.size)
        for place in places(self.axis, group.dim):
            owned = place >= 0
            lifted += np.bincount(place[owned], numbers[owned], group.size)
        return lifted


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
                yield Read(_flat(array, axis), axes[axis], standing)
    context.progress("scoring", len(wanted), len(wanted))


def reduced(
    analysis: Analysis, groups: Sequence[Group], context: Context, reduce: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return parts [tensors, size] for each group; `reduce` makes [places] of a weight [before, places, after]."""
    parts: dict[str, list[np.ndarray]] = {group.name: [] for group in groups}
    for weight in read(analysis, groups, context):
        numbers = reduce(weight.array).astype(np.float64)
        for group in weight.owners:
            parts[group.name].append(weight.lift(numbers, group))
    return {group.name: np.array(parts[group.name]).reshape(-1, group.size) for group in groups}


def energies(analysis: Analysis, groups: Sequence[Group], context: Context) -> dict[str, np.ndarray]:
    """Return the sum of squares that each entry has in each tensor of its group: [tensors, size]."""
    return reduced(analysis, groups, context, _sum_of_squares)


def _sum_of_squares(array: np.ndarray) -> np.ndarray:
    """Sum the squares, without a copy of the array."""
    energy: np.ndarray = np.einsum("anb,anb->n", array, array)
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


def _flat(array: np.ndarray, axis: int) -> np.ndarray:
    """Join the axes before and after one, half precision as float32."""
    shape = array.shape
    flat = array.reshape(int(np.prod(shape[:axis])), shape[axis], int(np.prod(shape[axis + 1 :])))
    return flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float32)


def is_float(value: ir.Value) -> bool:
    """Say whether a value is an initializer of floats."""
    return value.const_value is not None and value.const_value.dtype.is_floating_point()


def _rank(value: ir.Value) -> int:
    return 0 if value.const_value is None else len(value.const_value.shape)
