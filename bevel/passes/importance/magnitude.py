"""Score by the size of the weights."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import Axis, places
from bevel.ir.content import content
from bevel.ir.groups import Analysis, Group, Member
from bevel.passes.base import Context


def magnitude(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the L2 norm of all matrix and kernel weights that it owns, over every coupled tensor.

    Vectors (biases, normalisation parameters) count only where a group has nothing else. Weights are read one at a
    time. Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, lifted to coupled groups.
    """
    energies = {group.name: np.zeros(group.size) for group in groups}
    wanted = _by_tensor(groups)
    for done, (value, owners) in enumerate(wanted.items()):
        context.progress("scoring", done, len(wanted))
        for group, member, energy in _energies(value, owners):
            for place in places(_axis(analysis, member), group.dim):
                owned = place >= 0
                np.add.at(energies[group.name], place[owned], energy[owned])
    context.progress("scoring", len(wanted), len(wanted))
    return {name: np.sqrt(energy) for name, energy in energies.items()}


def _by_tensor(groups: Sequence[Group]) -> dict[ir.Value, list[tuple[Group, Member]]]:
    """List which groups each weight counts for; an axis that holds a group's dimension twice counts once."""
    wanted: dict[ir.Value, list[tuple[Group, Member]]] = {}
    for group in groups:
        floats = [member for member in group.members if _is_float(member.value)]
        matrices = [member for member in floats if _rank(member.value) > 1]
        axes = {(member.value, member.axis): member for member in matrices or floats}
        for (value, _), member in axes.items():
            wanted.setdefault(value, []).append((group, member))
    return wanted


def _energies(value: ir.Value, owners: list[tuple[Group, Member]]) -> Iterator[tuple[Group, Member, np.ndarray]]:
    """Yield the sum of squares at every place of the axes asked for."""
    assert value.const_value is not None
    with content(value.const_value) as array:
        by_axis = {axis: _energy(array, axis) for axis in {member.axis for _, member in owners}}
    for group, member in owners:
        yield group, member, by_axis[member.axis]


def _energy(array: np.ndarray, axis: int) -> np.ndarray:
    """Sum the squares over all other axes, without a copy of the array."""
    shape = array.shape
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    flat = array.reshape(before, shape[axis], after)
    if flat.dtype not in (np.float32, np.float64):
        flat = flat.astype(np.float32)
    energy: np.ndarray = np.einsum("anb,anb->n", flat, flat)
    return energy.astype(np.float64)


def _axis(analysis: Analysis, member: Member) -> Axis:
    axes = analysis.axes(member.value)
    assert axes is not None
    return axes[member.axis]


def _is_float(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype.is_floating_point()


def _rank(value: ir.Value) -> int:
    return 0 if value.const_value is None else len(value.const_value.shape)
