"""What the gates of a mixture count, found by comparing with what the graph gives."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from bevel.passes.base import Runtime
from bevel.passes.mixtures.chains import Unlike
from bevel.passes.mixtures.description import Mixture
from bevel.passes.mixtures.gating import COUNTED_KINDS, KINDS, Gating, Kind
from bevel.passes.mixtures.probing import Probe

Array = np.ndarray[Any, Any]

# A factor of the gates that is this near a fraction of small numbers, as a share of the limits, is that fraction: it is
# a mean over all numbers of the output, and so far nearer than the worst of them.
SNAP: Final = 0.1
LARGEST_DENOMINATOR: Final = 64


def gating_of(made: Mixture, probe: Probe, runtime: Runtime, limit: float) -> Gating:
    """Return what gates count, by comparing with what the graph gives; raises `Unlike` if nothing gives that."""
    outputs = made.outputs(probe.rows, runtime).astype(np.float64)
    wanted = probe.output.astype(np.float64) - made.always(probe.rows, runtime)
    found: list[tuple[float, Gating]] = []
    if made.gating.kind == "router":
        kinds: tuple[Kind, ...] = ("router",)
    else:
        kinds = KINDS if made.gating.threshold is None else COUNTED_KINDS
    for kind in kinds:
        gates = replace(made.gating, kind=kind, scale=1.0).gates(probe.logits, made.active)
        scale, error = fitted(gates, outputs, wanted, limit)
        found.append((error, replace(made.gating, kind=kind, scale=scale)))
    near = [gating for error, gating in found if error <= limit]
    if near:  # several where experts are equal: rather the one that needs no factor
        return min(near, key=lambda gating: gating.scale != 1.0)
    error, nearest = min(found, key=lambda pair: pair[0])
    raise Unlike(
        f"its output is {error:.2g} away from what its experts give by the nearest gates known ({nearest.kind})"
    )


def fitted(gates: Array, outputs: Array, wanted: Array, limit: float) -> tuple[float, float]:
    """Return the factor with which gates `[rows, experts]` weigh outputs to what is wanted, and how far that is off."""
    answer = np.einsum("re,erc->rc", gates, outputs)
    scale = _snapped(float((answer * wanted).sum() / max(float(np.square(answer).sum()), 1e-30)), limit * SNAP)
    error = np.abs(scale * answer - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)
    return scale, float(error)


def _snapped(number: float, near: float) -> float:
    """Return a fraction of small numbers that is so near, or the number.

    >>> _snapped(0.99999999, 1e-5), _snapped(1.3333334, 1e-5), _snapped(0.123456, 1e-5)
    (1.0, 1.3333333333333333, 0.123456)
    """
    found = float(Fraction(number).limit_denominator(LARGEST_DENOMINATOR))
    return found if abs(found - number) <= near * abs(number) else number
