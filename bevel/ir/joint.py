"""Scales within: every head scales its channels by factors of its own.

To the analysis the channels of a head are one dimension, which all heads share, so that a motion along it gives all of
them the same factors. Where nodes keep heads apart (`bevel.ir.within`), and a motion of the heads multiplies the very
tensors that one of the channels does, to the same powers, each entry of heads x channels can have a factor of its own:
every product in the graph meets both indices at once, and the powers cancel for both. A convolution in groups has them
on two axes of its weight, and is left to motions that all groups share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.axes import Axis
from bevel.ir.content import recompute
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group
from bevel.ir.mixing import mixed
from bevel.ir.strands import Occurrence, alternatives
from bevel.ir.symmetry import Motion


@dataclass(frozen=True, eq=False)
class Joint:
    """A motion along the channels of heads, with the group of the heads and where those stand beside the channels."""

    group: Group
    motion: Motion
    heads: Group
    beside: Mapping[Occurrence, Occurrence]

    @property
    def size(self) -> int:
        """How many factors there are."""
        return self.heads.size * self.group.size


def joint(analysis: Analysis, group: Group, motion: Motion, heads: Group | None) -> Joint | None:
    """Return a motion along a group as one of each head by itself, if that is one; `heads` is the group's `host`."""
    if heads is None:
        return None
    for other in heads.motions(Freedom.SCALE):
        beside = {each: found for each in motion.exponents if (found := _beside(analysis, each, other)) is not None}
        same = all(other.exponents[head] == motion.exponents[each] for each, head in beside.items())
        one_axis = all(beside[each].axis == each.axis for each in motion.initializers if each in beside)
        if same and one_axis and len(beside) == len(motion.exponents) and set(beside.values()) == set(other.exponents):
            return Joint(group, motion, heads, beside)
    return None


def scale_within(analysis: Analysis, found: Joint, factors: np.ndarray) -> None:
    """Multiply tensors along channels, head by head, by positive factors `[heads, channels]`; what follows is divided.

    Raises `EditRefused` for factors that are not positive and finite.
    """
    flat = np.asarray(factors, np.float64).reshape(-1)
    if len(flat) != found.size or not np.isfinite(flat).all() or not (flat > 0).all():
        raise EditRefused(
            f"{found.heads.size} x {found.group.size} positive factors are needed", where=f"group {found.group.name!r}"
        )
    steps: dict[ir.Value, list[tuple[int, np.ndarray]]] = {}
    for each, power in found.motion.initializers.items():
        vector = np.append(flat, 1.0)[entries_within(analysis, found, each)] ** float(power)
        steps.setdefault(each.value, []).append((each.axis, vector))
    for value, listed in steps.items():
        _multiply(value, listed)


def entries_within(analysis: Analysis, found: Joint, place: Occurrence) -> np.ndarray:
    """Return which of heads x channels each place along an axis is; -1 for what is neither."""
    axis = (analysis.axes(place.value) or ())[place.axis]
    head = found.beside[place]
    channels = entries(axis, place, found.group.size)
    heads = entries(axis, head, found.heads.size)
    return np.where((channels >= 0) & (heads >= 0), heads * found.group.size + channels, -1)


def entries(axis: Axis, place: Occurrence, size: int) -> np.ndarray:
    """Return which entry of a dimension each place along an axis is, where it stands; -1 elsewhere."""
    # What is not multiplied stays 1: entries are counted from 2.
    return mixed(np.ones(axis.size), axis, place.path, np.arange(2.0, size + 2)).astype(np.int64) - 2


def _beside(analysis: Analysis, place: Occurrence, motion: Motion) -> Occurrence | None:
    """Return the one place of a motion of the heads that a place of the channels lies in."""
    axes = analysis.axes(place.value) or ()
    found = [
        each
        for each in motion.exponents
        if each.value is place.value
        and not (each.axis == place.axis and alternatives(axes[place.axis], each.path, place.path))
    ]
    return found[0] if len(found) == 1 else None


def _multiply(value: ir.Value, steps: list[tuple[int, np.ndarray]]) -> None:
    """Let an initializer be multiplied along its axes when somebody asks for its content."""

    def multiplied(array: np.ndarray) -> np.ndarray:
        for axis, factor in steps:
            array *= factor.reshape(-1, *[1] * (array.ndim - axis - 1))
        return array

    recompute(value, multiplied)
