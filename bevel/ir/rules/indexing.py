"""Operators that take entries by place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bevel.ir.action import MOVED
from bevel.ir.axes import Axis, fresh, product, total
from bevel.ir.coupling import Freedom, rule
from bevel.ir.resize import Resize, Statement, Write, attribute_sizes, operand_sizes, set_operand
from bevel.ir.rules.layout import cut
from bevel.ir.site import SIZES, Opaque, Site
from bevel.ir.sizes import is_open, is_symbolic

BY_VALUE = "its entries are addressed by value"
NOT_WRITTEN = "what is not written keeps its old value"
MEANS_THE_END = 2**29  # exporters write a bound beyond every real size for "to the end"


@rule("Slice", acts=MOVED)
def slice_(site: Site) -> None:
    """Cut a part out of an axis, or every s-th entry; the bounds follow."""
    axes = list(site.axes(0))
    starts, ends, places, steps = _bounds(site, len(axes))
    first: list[Axis | int] = []
    last: list[Axis | int] = []
    from_the_end: list[Axis] = []
    for start, end, place, step in zip(starts, ends, places, steps, strict=True):
        axis = axes[place]
        if start is None or end is None or is_open(start) or is_open(end) or is_symbolic(axis.size) or step < 1:
            axes[place] = _unknown_part(site, axis, place, start, end, step)
            first.append(start or 0)
            last.append(end or 0)
            continue
        low, high = _clamp(start, axis.size), _clamp(end, axis.size)
        before, axes[place], upto = _part(site, axis, low, max(low, high), step)
        first.append(before)
        last.append(upto)
        if start < 0 or end < 0:
            from_the_end.append(axis)
    site.set(0, axes)
    for statement in _bounds_statements(site, first, last, from_the_end):
        site.states(statement)


def _bounds(site: Site, rank: int) -> tuple[Sequence[int | None], Sequence[int | None], list[int], list[int]]:
    """Return starts, ends, axes and steps; bounds that only the run tells are None."""
    if site.inputs == 1:
        starts: Sequence[int | None] = site.integer_list("starts") or []
        ends: Sequence[int | None] = site.integer_list("ends") or []
        places = site.integer_list("axes")
        steps = [1] * len(starts)
    else:
        places = site.required_integers(3) if site.has(3) else None
        count = len(places) if places is not None else len(site.integers(1) or site.integers(2) or range(rank))
        starts = site.integers(1) or [None] * count
        ends = site.integers(2) or [None] * count
        steps = site.required_integers(4) if site.has(4) else [1] * count
    listed = places if places is not None else range(len(starts))
    return starts, ends, [site.position(place, rank) for place in listed], steps


def _clamp(bound: int, size: int) -> int:
    return min(max(bound + size if bound < 0 else bound, 0), size)


def _part(site: Site, axis: Axis, low: int, high: int, step: int) -> tuple[Axis | int, Axis, Axis | int]:
    """Return the part before, the part taken, and what the end bound repeats."""
    if step == 1:
        before, rest = cut(site, axis, low)
        part = cut(site, rest, high - low)[0]
        return before, part, total(before, part)
    if axis.size % step == 0 and low < step and high - low > axis.size - step:
        taken = fresh(axis.size // step)  # every s-th entry: axis = taken * s
        phase = fresh(step)
        site.equate(axis, product(taken, phase))
        site.fix(phase, "it takes every entry of one phase")
        return low, taken, axis
    site.fix(axis, "it is taken in strides")
    part = fresh(-(-(high - low) // step))
    site.fix(part, "it is taken in strides")
    return low, part, high


def _unknown_part(site: Site, axis: Axis, place: int, start: int | None, end: int | None, step: int) -> Axis:
    """Return the part of an axis whose bounds, or size, only the run tells."""
    if start == 0 and step == 1 and end is not None and _reaches_the_end(end, axis.size):
        return axis
    site.fix(axis, "a part of it is taken whose bounds are positions")
    sizes = site.output_sizes()
    name = f"{site.node.outputs[0].name}[{place}]"
    part = fresh(sizes[place] if sizes else site.facts.symbols.unknown(name))
    site.fix(part, "it is cut by positions")
    return part


def _reaches_the_end(end: int, size: int) -> bool:
    """Say whether a bound is the axis's own size or beyond; of a symbol only the former can be known."""
    return end == size if is_open(end) else end >= min(size, MEANS_THE_END)


def _bounds_statements(
    site: Site, first: list[Axis | int], last: list[Axis | int], from_the_end: list[Axis]
) -> list[Statement]:
    """State what the bounds repeat; those that count from the end also follow what comes after the part."""
    node = site.node
    if site.inputs == 1:
        pairs = (("starts", first), ("ends", last))
        return [_attribute_bounds(node, name, bounds, from_the_end) for name, bounds in pairs]
    known = site.integers(1), site.integers(2)
    return [
        operand_sizes(node, index, bounds, from_the_end)
        for index, bounds, content in ((1, first, known[0]), (2, last, known[1]))
        if content is not None
    ]


def _attribute_bounds(node: ir.Node, name: str, bounds: list[Axis | int], from_the_end: list[Axis]) -> Statement:
    axes = [fresh(bound) if isinstance(bound, int) else bound for bound in bounds]
    return attribute_sizes(node, name, axes, from_the_end)


@rule("Gather", acts=MOVED)
def gather(site: Site) -> None:
    """Take entries of one axis: by constant places, or by a value that only the run tells."""
    data, indices = site.axes(0), site.axes(1)
    place = site.position(site.integer("axis"), len(data))
    known = site.integers(1)
    axis = data[place]
    if known is None or is_symbolic(axis.size) or not known:
        site.fix(axis, BY_VALUE)
        taken: Sequence[Axis] = indices
    else:
        taken = _known_entries(site, axis, known, indices)
    site.set(0, (*data[:place], *taken, *data[place + 1 :]))


def _known_entries(site: Site, axis: Axis, known: list[int], indices: Sequence[Axis]) -> Sequence[Axis]:
    low = known[0] % axis.size
    consecutive = [index % axis.size for index in known] == list(range(low, low + len(known)))
    if not consecutive or len(indices) > 1:
        site.fix(axis, "it is taken in an order of its own")
        site.fix(indices, "its entries are places")
        return indices
    before, rest = cut(site, axis, low)
    part = cut(site, rest, len(known))[0]
    site.states(_places_statement(site.node, axis, before, part, scalar=not indices))
    return (part,) if indices else ()


def _places_statement(node: ir.Node, axis: Axis, before: Axis, part: Axis, *, scalar: bool) -> Statement:
    """State that an operand lists the places of a part; it may count them from the end of the whole axis."""

    def follow(resize: Resize) -> Sequence[Write]:
        if not resize.touches(axis):
            return ()
        start = resize.of(before)
        places = np.arange(start, start + resize.of(part), dtype=np.int64)
        return [lambda: set_operand(node, 1, places[0] if scalar else places, resize.names)]

    return follow


@rule("GatherElements", acts=MOVED)
def gather_elements(site: Site) -> None:
    """Take entries along one axis by value; the other axes are the same where both are taken whole."""
    data, indices = site.axes(0), site.axes(1)
    place = site.position(site.integer("axis"), len(data))
    site.fix(data[place], BY_VALUE)
    site.set(0, _whole_axes(site, data, indices, {place}))


def _whole_axes(site: Site, data: Sequence[Axis], indices: Sequence[Axis], addressed: set[int]) -> list[Axis]:
    """Equate axes that indices run through in step with the data; shorter ones are fixed at both."""
    if len(data) != len(indices):
        raise Opaque("data and indices have different ranks")
    for place, (axis, other) in enumerate(zip(data, indices, strict=True)):
        if place in addressed:
            continue
        if axis.size == other.size:
            site.equate(axis, other)
        else:
            site.fix((axis, other), "only the first entries are addressed")
    return list(indices)


@rule("GatherND", acts=MOVED)
def gather_nd(site: Site) -> None:
    """Take sub-tensors by value; batch axes and the trailing axes that are taken whole stay free."""
    data, indices = site.axes(0), site.axes(1)
    batch = site.integer("batch_dims")
    depth = indices[-1].size
    if is_symbolic(depth):
        raise Opaque("how many axes it addresses is not known")
    site.equate_all(data[:batch], indices[:batch])
    site.fix(data[batch : batch + depth], BY_VALUE)
    site.fix(indices[-1], SIZES)
    site.set(0, (*indices[:-1], *data[batch + depth :]))


@rule("ScatterElements", "Scatter")
def scatter_elements(site: Site) -> None:
    """Write entries along one axis by value."""
    data, indices, updates = site.axes(0), site.axes(1), site.axes(2)
    place = site.position(site.integer("axis"), len(data))
    site.fix(data[place], BY_VALUE)
    site.equate_all(indices, updates)
    site.keep(indices[place], Freedom.PERMUTE, NOT_WRITTEN)
    _whole_axes(site, data, indices, {place})
    site.set(0, data)


@rule("ScatterND")
def scatter_nd(site: Site) -> None:
    """Write sub-tensors by value; trailing axes that are written whole stay free."""
    data, indices, updates = site.axes(0), site.axes(1), site.axes(2)
    depth = indices[-1].size
    if is_symbolic(depth):
        raise Opaque("how many axes it addresses is not known")
    site.fix(data[:depth], BY_VALUE)
    site.fix(indices[-1], SIZES)
    site.keep(indices[:-1], Freedom.PERMUTE, NOT_WRITTEN)
    site.equate_all(updates, (*indices[:-1], *data[depth:]))
    site.set(0, data)
