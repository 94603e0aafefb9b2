"""Caches that are quantized together: those that one node adds to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.ir.caches import Cache, caches, unclear
from bevel.passes.patterns import asked

Array = np.ndarray[Any, Any]
Plan: TypeAlias = Mapping[int, int]
"""The bits of units, by their numbers; the others stay in floats."""

UNKNOWN = (
    "no operator of the main graph that is known to add entries gives it out; "
    "a decoder with caches in a condition (merged) has to be exported without it"
)


@dataclass(frozen=True)
class Unit:
    """Caches that one node adds to; with `fast`, it reads codes itself."""

    node: ir.Node
    caches: Sequence[Cache]
    fast: bool

    @property
    def names(self) -> list[str]:
        """What the caches are called."""
        return [cache.name for cache in self.caches]

    @property
    def paired(self) -> bool:
        """Whether codes of 4 bits fit."""
        return all(cache.paired for cache in self.caches)


def units(
    model: ir.Model, only: Sequence[str], skip: Sequence[str], *, fast: bool, each: bool
) -> tuple[list[Unit], dict[str, str]]:
    """Return what is quantized together, and why other caches stay as they are."""
    left = dict.fromkeys(unclear(model), UNKNOWN)
    wanted: dict[ir.Node, list[Cache]] = {}
    for cache in caches(model):
        if asked((cache.name, cache.node.name or ""), only, skip):
            wanted.setdefault(cache.node, []).append(cache)
        else:
            left[cache.name] = "not asked for"
    return [Unit(node, found, fast and _in_kernel(found, each=each)) for node, found in wanted.items()], left


def _in_kernel(found: Sequence[Cache], *, each: bool) -> bool:
    """Tell whether ONNX Runtime's kernel takes these caches as codes: keys and values, given out as they are."""
    return len(found) == 2 and all(
        cache.grouped and cache.present in cache.node.outputs and (len(cache.channels) == 2 or not each)
        for cache in found
    )
