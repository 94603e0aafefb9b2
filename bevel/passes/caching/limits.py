"""Bits of caches so that the error of the outputs is within a limit: few where they do little, else more."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import onnx_ir as ir

from bevel.passes.activations.limits import Trial, within
from bevel.passes.base import Context
from bevel.passes.caching.units import Plan

Put: TypeAlias = Callable[[ir.Model, Plan], None]
MOST_BITS: Final = 8


def raised(model: ir.Model, context: Context, put: Put, plan: Plan, limit: float) -> tuple[dict[int, int], list[int]]:
    """Return the bits of units, and which units stay in floats, the worst first.

    Those that do most to the outputs with the bits of `plan` get 8, and are left in floats if that is not enough.
    """
    kept: dict[int, int] = {}
    waiting = list(plan)
    for least in sorted({*plan.values(), MOST_BITS}):
        bits = {number: max(least, plan[number]) for number in waiting}
        chosen = within(Trial(model, context, partial(_some, put, dict(kept), bits)), waiting, limit)
        kept |= {number: bits[number] for number in chosen.kept}
        waiting = chosen.dropped
        if not waiting:
            break
    return dict(sorted(kept.items())), waiting


def _some(put: Put, kept: Plan, bits: Mapping[int, int], model: ir.Model, numbers: Sequence[int]) -> None:
    put(model, {**kept, **{number: bits[number] for number in numbers}})
