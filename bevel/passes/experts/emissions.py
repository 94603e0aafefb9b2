"""Emissions by name: what writes them, how near they have to be to the mask, and which of them is fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, PromiseBroken, UnsupportedModel
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.feed_forward import feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.names import Names
from bevel.ir.piece import piece
from bevel.ir.split import Parts
from bevel.passes.base import REASSOCIATION_RTOL, Runtime
from bevel.passes.experts.blocks import blocks, dynamic
from bevel.passes.experts.emission import Emitter, masked
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.form import NEAR, form_of
from bevel.passes.experts.gather import gather
from bevel.passes.experts.kernel import moe
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.packed import qmoe
from bevel.passes.experts.writing import from_rows, loosen

Array = np.ndarray[Any, Any]

# Rows on which the emitted nodes are compared with the mask.
COMPARED: Final = 256
# How far integers may be from the mask, times 2**-bits: half a step in each of two weights and what they read, doubled.
COARSE: Final = 4.0
# In 8 bits what is read has one step for all rows, which those with small numbers feel more.
DYNAMIC_COARSE: Final = 2 * COARSE


@dataclass(frozen=True)
class Integers:
    """How weights are made integers: bits of each, and how many share a scale."""

    bits: int = 4
    block: int = 32


@dataclass(frozen=True)
class Emission:
    """A way to run mixtures.

    `prepare` takes what is known of a layer, the last product's weights and how integers are made, and returns what
    writes. `limit` is how far the result may be from the mask, given the bits of a weight. It raises `EditRefused`
    where the layer cannot be had so.
    """

    prepare: Callable[[Evidence, Array, Integers], Emitter]
    limit: Callable[[int], float] = lambda bits: REASSOCIATION_RTOL
    exact: bool = True


def _by_itself(emitter: Emitter) -> Emission:
    return Emission(lambda found, down, integers: emitter)


def _moe(found: Evidence, down: Array, integers: Integers) -> Emitter:
    form = form_of(found)
    return lambda parts, mixture, names: moe(parts, form, mixture, down, names)


def _qmoe(found: Evidence, down: Array, integers: Integers) -> Emitter:
    form = form_of(found)
    return lambda parts, mixture, names: qmoe(parts, form, mixture, down, names, integers.bits, integers.block)


EMISSIONS: Final[Mapping[str, Emission]] = {
    "blocks": _by_itself(blocks),
    "dynamic": Emission(lambda found, down, integers: dynamic, lambda bits: DYNAMIC_COARSE / 2**8, exact=False),
    "moe": Emission(_moe, lambda bits: NEAR),
    "qmoe": Emission(_qmoe, lambda bits: COARSE / 2**bits, exact=False),
    "gather": _by_itself(gather),
    "masked": _by_itself(masked),
}


def check(found: Evidence, mixture: Mixture, name: str, integers: Integers) -> None:
    """Raise `PromiseBroken` if what an emission gives is not what the mask gives."""
    emission = EMISSIONS[name]
    largest, _ = distance(found, mixture, emission.prepare(found, found.down, integers))
    limit = max(emission.limit(integers.bits), 4 * float(np.finfo(found.rows.dtype).eps))
    if not largest <= limit:
        raise PromiseBroken(
            f"its experts are {largest:.2g} away from the mask (at most {limit:.2g})",
            where=f"convert-moe: {found.layer.name}",
            remedy="skip this layer",
        )


def distance(found: Evidence, mixture: Mixture, emit: Emitter) -> tuple[float, float]:
    """Return how far an emission is from the mask: the largest error of an output, and the error over all."""
    rows = found.rows[:COMPARED]
    given, wanted = (found.run(alone(found, mixture, each), rows)[0] for each in (emit, masked))
    largest = np.abs(given - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)
    return float(largest), float(np.linalg.norm(given - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def alone(found: Evidence, mixture: Mixture, emit: Emitter | None) -> ir.Model:
    """Return the layer as a model of its own, as a mixture, or as it is."""
    layer = found.layer
    model = piece(found.parts.model, [layer.input], [layer.output])
    if emit is not None:
        inside, _ = feed_forwards(analyse(model, interface=False))
        twin = next(each for each in inside if each.hidden.name == layer.hidden.name)
        emit(Parts(model, twin), mixture, Names(model))
        remove_dead(model)
    return loosen(model, layer)


@dataclass(frozen=True)
class Race:
    """How many times as fast as the dense layer each emission is, on so many rows; the first is the fastest."""

    speeds: Mapping[str, float]
    rows: int

    @property
    def fastest(self) -> str:
        """The emission to take."""
        return next(iter(self.speeds))

    def __str__(self) -> str:
        told = ", ".join(f"{name} {speed:.2g}x" for name, speed in self.speeds.items())
        return f"as fast as the dense layer, measured on {self.rows} rows: {told}"


def race(found: Evidence, mixture: Mixture, runtime: Runtime, rows: int, tolerance: float, integers: Integers) -> Race:
    """Measure the emissions that are right, and return how fast they are.

    Those of integers take part if their relative error on the calibration data is at most the tolerance. Raises
    `EditRefused` where none is right.
    """
    candidates = dict(_right(found, mixture, tolerance, integers))
    if not candidates:
        raise EditRefused(
            "no emission gives what the mask gives",
            where=f"group {found.layer.name!r}",
            remedy="skip this layer, or take emit=masked",
        )
    models = [alone(found, mixture, None), *(alone(found, mixture, emit) for emit in candidates.values())]
    given = from_rows(np.resize(found.rows, (rows, found.rows.shape[1])), found.layer)
    dense, *times = runtime.latencies(models, {found.layer.input.name or "": given})
    order = sorted(zip(times, candidates, strict=True))
    return Race({name: dense / time for time, name in order}, rows)


def _right(found: Evidence, mixture: Mixture, tolerance: float, integers: Integers) -> Iterator[tuple[str, Emitter]]:
    """Yield the emissions that this layer can have and that compute what the mask gives."""
    for name, emission in EMISSIONS.items():
        if name == "masked" or not (emission.exact or tolerance):
            continue
        try:
            emit = emission.prepare(found, found.down, integers)
            largest, relative = distance(found, mixture, emit)
        except (EditRefused, UnsupportedModel):  # it is no candidate
            continue
        if largest <= emission.limit(integers.bits) and (emission.exact or relative <= tolerance):
            yield name, emit


def likeness(found: Evidence) -> tuple[object, ...]:
    """Return what a layer's speed depends on; layers in which that is the same run alike."""
    layer = found.layer
    return layer.channels, layer.size, tuple(node.op_type for node in layer.nodes)
