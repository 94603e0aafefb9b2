"""What became of each cache, in words."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Final

from bevel.ir.caches import Cache
from bevel.ir.coded import KEY, TYPES
from bevel.passes.caching.units import Plan, Unit
from bevel.passes.sentences import by_reason, listed

MOST_NAMED: Final = 8


def notes(found: Sequence[Unit], plan: Plan, left: Mapping[str, str], remarks: Sequence[str]) -> Iterator[str]:
    """Say which caches are codes, how many bytes that saves, and which caches are not."""
    if not plan:
        yield "no caches of keys and values were quantized"
    for bits in sorted(set(plan.values())):
        yield _coded([found[number] for number, each in plan.items() if each == bits], bits)
    if plan:
        yield f"{_bytes(found, plan)}; the metadata {KEY!r} has the scales"
    yield from remarks
    for why, names in by_reason(left).items():
        yield f"left in floats: {listed(names, MOST_NAMED)}: {why}"


def _coded(units: Sequence[Unit], bits: int) -> str:
    names = [name for unit in units for name in unit.names]
    fast = sum(len(unit.caches) for unit in units if unit.fast)
    return (
        f"{len(names)} caches come in and go out as codes of {bits} bits, in {TYPES[bits]}; "
        f"{fast} of them are read as they are by the attention's kernel: {listed(names, MOST_NAMED)}"
    )


def _bytes(found: Sequence[Unit], plan: Plan) -> str:
    """Say how many bytes there are for each sample and position."""
    caches = [(cache, plan.get(number)) for number, unit in enumerate(found) for cache in unit.caches]
    before, after = (sum(_size(cache, bits if coded else None) for cache, bits in caches) for coded in (False, True))
    return f"the caches that were asked for take {after:.9g} bytes a token instead of {before:.9g}"


def _size(cache: Cache, bits: int | None) -> float:
    """Return how many bytes of a cache there are for each sample and position, in codes of some bits or in floats."""
    entries = prod(size for axis in cache.channels if isinstance(size := (cache.past.shape or ())[axis], int))
    each = bits / 8 if bits else cache.past.dtype.itemsize if cache.past.dtype else 0
    return entries * float(each)
