"""Scales of caches: from what a model gives out on calibration inputs, one for each entry of each head, or one for all.

Codes are symmetric, so that a scale is the largest magnitude over the largest code, or a part of that: the part that
leaves the least squared error, or the least one that clips no more than some share of the entries. Inputs are run once
for the magnitudes, and once more for the part.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import CalibrationError
from bevel.ir.caches import Cache
from bevel.ir.coded import levels
from bevel.passes.base import Runs, Runtime
from bevel.passes.calibration import Feed

Array = np.ndarray[Any, Any]
Method: TypeAlias = Literal["max", "mse", "percentile"]
Feeds: TypeAlias = Callable[[], Iterable[Feed]]

# Parts of the largest magnitude that are tried, each 6% below the one before, down to a fifth: below that, more is lost
# to clipping than finer steps gain, whatever the distribution of a network's activations.
PARTS: Final = 0.94 ** np.arange(26, dtype=np.float32)


def scales(
    model: ir.Model,
    found: Sequence[Cache],
    feeds: Feeds,
    runtime: Runtime,
    *,
    bits: int,
    each: bool,
    method: Method,
    percentile: float,
) -> dict[str, Array]:
    """Return the scale of each cache by its name, of a shape that broadcasts; one for `each` channel, or `[1]`.

    Raises `CalibrationError` if there are no inputs, or a cache is not finite on them.
    """
    axes = {cache.name: _others(cache, each=each) for cache in found}
    names = {cache.present.name: cache.name for cache in found}
    probe = model.clone()
    probe.graph.outputs[:] = [value for value in probe.graph.outputs if value.name in names]
    with runtime.open(probe) as runs:
        steps = _steps(_contents(runs, names, feeds()), axes, bits)
        if method != "max":
            losses = _losses(_contents(runs, names, feeds()), axes, steps, bits, method)
            bound = 1 - percentile / 100 if method == "percentile" else None
            steps = {name: step * _part(losses[name], bound) for name, step in steps.items()}
    return {name: step if each else step.reshape(1) for name, step in steps.items()}


def _others(cache: Cache, *, each: bool) -> tuple[int, ...]:
    """Return the axes over which a scale is the same."""
    return tuple(axis for axis in range(cache.rank) if not each or axis not in cache.channels)


def _contents(runs: Runs, names: Mapping[str | None, str], feeds: Iterable[Feed]) -> Iterator[tuple[str, Array]]:
    """Yield what each cache holds after a run, by the name of the input; empty ones are left out."""
    for feed in feeds:
        for output, array in runs.run(feed).items():
            if not np.isfinite(array).all():
                raise CalibrationError(
                    "is not finite on the calibration inputs", where=f"cache {names[output]!r}", remedy="skip it"
                )
            if array.size:
                yield names[output], np.asarray(array, np.float32)


def _steps(contents: Iterable[tuple[str, Array]], axes: Mapping[str, tuple[int, ...]], bits: int) -> dict[str, Array]:
    """Return, by cache, the scale with which the largest code is the largest magnitude of each channel."""
    largest: dict[str, Array] = {}
    for name, array in contents:
        top = np.abs(array).max(axis=axes[name], keepdims=True, initial=0)
        largest[name] = np.maximum(top, largest.get(name, np.float32(0)))
    if set(largest) != set(axes):
        raise CalibrationError("there are no inputs to take scales from", remedy="give some with --calibration")
    return {name: np.where(top > 0, top, 1) / np.float32(levels(bits)) for name, top in largest.items()}


def _losses(
    contents: Iterable[tuple[str, Array]],
    axes: Mapping[str, tuple[int, ...]],
    steps: Mapping[str, Array],
    bits: int,
    method: Method,
) -> dict[str, Array]:
    """Return, by cache, what each part loses in each channel, along a first axis of parts; shares of all entries."""
    measure = _clipped if method == "percentile" else _squared
    sums: dict[str, Array] = {}
    for name, array in contents:
        lost = [measure(array, steps[name] * part, bits).sum(axis=axes[name], keepdims=True) for part in PARTS]
        count = np.float64(array.size / steps[name].size)
        sums[name] = sums.get(name, np.float64(0)) + np.stack([*lost, np.full_like(lost[0], count)])
    return {name: total[:-1] / total[-1] for name, total in sums.items()}


def _squared(array: Array, step: Array, bits: int) -> Array:
    most = levels(bits)
    codes = np.clip(np.rint(array / step), -most - 1, most)
    error: Array = np.square((codes * step - array).astype(np.float64))
    return error


def _clipped(array: Array, step: Array, bits: int) -> Array:
    beyond: Array = (np.abs(array) > step * levels(bits)).astype(np.float64)
    return beyond


def _part(losses: Array, bound: float | None) -> Array:
    """Return the part that loses least; with a bound, the least part that loses no more."""
    if bound is None:
        best = losses.argmin(axis=0)
    else:
        losses[0] = 0  # nothing is beyond the largest magnitude, but for rounding
        best = len(PARTS) - 1 - (losses <= bound)[::-1].argmax(axis=0)
    part: Array = PARTS[best]
    return part
