"""The feed-forward layers of a model that can be divided into experts, and why others cannot."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.edit import FREE_TO_DROP
from bevel.ir.feed_forward import FeedForward, Refused, feed_forwards
from bevel.ir.groups import analyse
from bevel.passes.base import Context
from bevel.passes.choice import choose
from bevel.passes.experts.account import MOST_NAMED
from bevel.passes.mixtures.beside import layers_beside

# Numbers of experts that are named where the one asked for does not divide a layer.
MOST_COUNTS: Final = 5
MOST_EXPERTS: Final = 256


def candidates(
    model: ir.Model, context: Context, experts: int, only: Sequence[str], skip: Sequence[str], where: str
) -> tuple[list[FeedForward], list[str]]:
    """Return the layers to divide into so many experts, and why others are left alone.

    Raises `EditRefused` if there is none. What stands beside a mixture, its shared expert, is only divided if `only`
    asks for it.
    """
    names, beside = layers_beside(model, context)
    analysis = analyse(model)
    asked = {group.name for group in choose(analysis, FREE_TO_DROP, only, skip)}
    found, refused = feed_forwards(analysis)
    able: list[FeedForward] = []
    left: list[str] = []
    for layer in found:
        if layer.name in asked:
            why = _against(layer, experts, {} if only else beside)
            able += [] if why else [layer]
            left += [f"left alone: {layer.name}: {why}"] if why else []
    left += [f"left alone: {each}" for each in _looking_alike(refused)]
    if not able:
        raise EditRefused("there is no feed-forward layer to convert", where=where, remedy=_remedy(names, left))
    return able, left


def _against(layer: FeedForward, experts: int, beside: Mapping[ir.Node, str]) -> str:
    """Return why a layer cannot be divided, nothing if it can."""
    if layer.input.dtype not in (None, ir.DataType.FLOAT):
        return f"it computes in {layer.input.dtype}, not in FLOAT"
    if layer.down in beside:
        return f"it is the shared expert of {beside[layer.down]}; only={layer.name} divides it all the same"
    if layer.size % experts:
        return uneven(layer.size, experts)
    return ""


def uneven(size: int, experts: int) -> str:
    """Say that entries do not divide by a number of experts, and by which they do.

    >>> uneven(360, 7)
    '360 entries do not divide by 7; experts=4, 5, 6, 8 or 9 does, or prune-channels{round-to=7} before'
    >>> uneven(359, 4)
    '359 entries do not divide by 4; prune-channels{round-to=4} before leaves a number that does'
    """
    counts = [count for count in range(2, min(size // 2, MOST_EXPERTS) + 1) if size % count == 0]
    prune = f"prune-channels{{round-to={experts}}} before"
    if not counts:
        return f"{size} entries do not divide by {experts}; {prune} leaves a number that does"
    *some, last = sorted(sorted(counts, key=lambda count: abs(count - experts))[:MOST_COUNTS])
    told = f"{', '.join(map(str, some))} or {last}" if some else str(last)
    return f"{size} entries do not divide by {experts}; experts={told} does, or {prune}"


def _looking_alike(refused: Sequence[Refused]) -> list[Refused]:
    """Return the groups that came nearest to a feed-forward layer: whole axes that may lose entries."""
    return [each for each in refused if each.whole and each.group.allows(FREE_TO_DROP)][:MOST_NAMED]


def _remedy(mixtures: Collection[str], left: Sequence[str]) -> str:
    """Say what stands in the way, and what to do."""
    told = list(left)
    if mixtures:
        there = ", ".join(sorted(mixtures))
        told.insert(0, f"mixtures of experts are there already ({there}): average-experts makes dense layers of them")
    return "; ".join(told) or "it takes two layers with an activation between them"
