"""Edits that move matrices through a graph: scales, rotations and linear maps that leave the function as it is.

Each multiplies every initializer of a motion (`bevel.ir.symmetry`) along its dimension, by its own power of one matrix;
what lies between them is computed in other coordinates, and comes out as it did. No node is added and none is taken
away. Gains that stand in the way of a rotation are folded into what follows them first.

Edits are lazy and atomic, as those of `bevel.ir.edit` are; the gains that are folded are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, UsageError
from bevel.ir.axes import Axis
from bevel.ir.content import content, recompute
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group, analyse
from bevel.ir.mixing import mixed, powered
from bevel.ir.strands import Occurrence
from bevel.ir.symmetry import Motion

Matrices: TypeAlias = Mapping[str, np.ndarray]

# How far the product of an orthogonal matrix with its transpose, or the sum of a row, may be from what it should be:
# what is left of double precision after a product of matrices of some thousand rows.
ROUNDING: Final = 1e-9
# A matrix of which the condition number is larger loses half of the digits of what it multiplies.
WORST_CONDITION: Final = 1e4


@dataclass(frozen=True, eq=False)
class Move:
    """A motion of a group, and what moves: a vector of positive factors (a scale), or a matrix."""

    group: Group
    motion: Motion
    factor: np.ndarray


def scale(model: ir.Model | Analysis, factors: Matrices) -> None:
    """Multiply tensors along groups by positive factors, and divide what follows by them.

    Keys are group names, or places `tensor[axis]`: the named place is multiplied by the factors, whatever else belongs
    to its motion follows. Raises `EditRefused` where nothing, or more than one thing, can move.
    """
    _edit(model, factors, Freedom.SCALE)


def rotate(model: ir.Model | Analysis, matrices: Matrices) -> None:
    """Multiply tensors along groups by orthogonal matrices `[size, size]`, and what follows by their inverses.

    `new = Q @ old` at the named place. Gains in the way are folded first, where none is zero.
    """
    _edit(model, matrices, Freedom.ROTATE)


def transform(model: ir.Model | Analysis, matrices: Matrices) -> None:
    """Multiply tensors along groups by invertible matrices `[size, size]`, and what follows by their inverses."""
    _edit(model, matrices, Freedom.LINEAR)


def move(analysis: Analysis, moves: Sequence[Move]) -> None:
    """Carry out moves, one after the other; refuses before the first write."""
    for each in moves:
        check(each)
    _write(analysis, [*_folds([(each.group, each.motion) for each in moves]), *moves])


def fold(analysis: Analysis, motions: Sequence[tuple[Group, Motion]]) -> None:
    """Fold the gains that stand in the way of rotations into what follows them, and turn nothing yet."""
    _write(analysis, _folds(motions))


def find(analysis: Analysis, key: str, kind: Freedom) -> tuple[Group, Motion, int]:
    """Return the motion that a key names, with its group and the power that the named place has in it.

    A key is a group's name, where the group has one motion of this kind, or a place of an initializer in one motion.
    """
    group, place = _place(analysis, key)
    motions = group.motions(kind)
    if not motions:
        raise EditRefused(
            "; ".join(group.why(kind)) or f"nothing can move along it ({_word(kind)})",
            where=f"group {group.name!r}",
            remedy="leave this group out; `bevel inspect` shows what each group allows",
        )
    found = [(motion, power) for motion in motions for each, power in motion.exponents.items() if str(each) == place]
    if len(found) == 1:
        return group, *found[0]
    if len(motions) == 1:
        return group, motions[0], 1
    places = [str(next(iter(motion.initializers))) for motion in motions]
    raise EditRefused(
        f"{len(motions)} things can move along it ({_word(kind)}), {place!r} is a part of {len(found) or 'none'}",
        where=f"group {group.name!r}",
        remedy=f"name a place that belongs to one of them: {', '.join(places[:5])}{', ...' if places[5:] else ''}",
    )


def _edit(model: ir.Model | Analysis, factors: Matrices, kind: Freedom) -> None:
    analysis = model if isinstance(model, Analysis) else analyse(model)
    moves = []
    for key, factor in factors.items():
        group, motion, power = find(analysis, key, kind)
        array = np.asarray(factor, np.float64)
        expected = (group.size,) if kind is Freedom.SCALE else (group.size, group.size)
        if array.shape != expected:
            raise EditRefused(f"{list(array.shape)} given, {list(expected)} needed", where=f"group {group.name!r}")
        moves.append(Move(group, motion, array if power > 0 else powered(array, -1)))
    move(analysis, moves)


def _place(analysis: Analysis, key: str) -> tuple[Group, str]:
    """Return the group that a key names, or of which it names a place."""
    if key in analysis.by_name:
        return analysis.by_name[key], key
    for group in analysis.groups:
        if any(str(member) == key for member in group.members):
            return group, key
    raise UsageError(
        f"no group and no place is called {key!r}", remedy="`bevel inspect` lists groups, `tensor[axis]` names a place"
    )


def _word(kind: Freedom) -> str:
    return (kind.name or "").lower()


def check(each: Move) -> None:
    """Raise `EditRefused` for what is no factor or matrix of the kind that a motion is for, or a gain that stays."""
    factor, where = each.factor, f"group {each.group.name!r}"
    _folds([(each.group, each.motion)])
    if not np.isfinite(factor).all():
        raise EditRefused("some factors are not finite", where=where)
    if factor.ndim == 1:
        if not (factor > 0).all():
            raise EditRefused("only positive factors can move", where=where)
        return
    if np.abs(factor @ factor.T - np.eye(len(factor))).max() > ROUNDING:
        if np.linalg.cond(factor) > WORST_CONDITION:
            raise EditRefused(f"the matrix has a condition number above {WORST_CONDITION:g}", where=where)
        if each.motion not in each.group.motions(Freedom.LINEAR):
            raise EditRefused("only orthogonal matrices can move along it", where=where)
    if each.motion.keeps_mean and np.abs(factor.sum(axis=1) - 1).max() > ROUNDING * len(factor) ** 0.5:
        raise EditRefused(
            "only a rotation that keeps the mean can move along it",
            where=where,
            remedy="bevel.ir.mixing.keeping_mean makes one of any orthogonal matrix",
        )


def _folds(motions: Sequence[tuple[Group, Motion]]) -> list[Move]:
    """Return the scales that make the gains of motions ones."""
    gains = {gain: group for group, motion in motions for gain in motion.folds}
    return [_fold(group, gain, gains) for gain, group in gains.items()]


def _fold(group: Group, gain: ir.Value, gains: Collection[ir.Value]) -> Move:
    """Return the scale that makes a gain ones and leaves the other gains as they are."""
    held = gain.const_value
    assert held is not None
    with content(held) as array:
        values = np.array(array, np.float64)
    if not np.isfinite(values).all() or not values.all():
        raise EditRefused(
            f"its gain {gain.name!r} has entries that are zero or infinite, so it cannot be folded into what follows",
            where=f"group {group.name!r}",
            remedy="prune those channels first, or leave this group out",
        )
    motion, power = next(
        (motion, power)
        for motion in group.motions(Freedom.SCALE)
        if {each.value for each in motion.exponents}.isdisjoint(set(gains) - {gain})
        for each, power in motion.exponents.items()
        if each.value is gain
    )
    if (values < 0).any() and not (abs(power) == 1 and group.symmetry.signed(motion)):
        raise EditRefused(
            f"its gain {gain.name!r} has negative entries, which do not pass what follows it",
            where=f"group {group.name!r}",
            remedy="leave this group out",
        )
    return Move(group, motion, values**-power if abs(power) == 1 else values ** (-1 / power))


def _write(analysis: Analysis, moves: Iterable[Move]) -> None:
    steps: dict[ir.Value, list[tuple[Occurrence, np.ndarray]]] = {}
    for each in moves:
        for occurrence, power in each.motion.initializers.items():
            steps.setdefault(occurrence.value, []).append((occurrence, powered(each.factor, power)))
    for value, listed in steps.items():
        _multiply(value, listed, analysis.axes(value) or ())


def _multiply(value: ir.Value, steps: Sequence[tuple[Occurrence, np.ndarray]], axes: Sequence[Axis]) -> None:
    """Let an initializer be multiplied, along its axes and in this order, when somebody asks for its content."""

    def multiplied(array: np.ndarray) -> np.ndarray:
        for each, factor in steps:
            moved = mixed(np.moveaxis(array, each.axis, 0), axes[each.axis], each.path, factor)
            array = np.moveaxis(moved, 0, each.axis)
        return array

    recompute(value, multiplied)
