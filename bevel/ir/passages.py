"""What passes into the graphs inside If, Loop and Scan, and out of them: one value, outside and inside.

outside                 inside
what goes in            what the first iteration takes
what comes out          what an iteration leaves, and what the next one takes
what is scanned         one entry of it an iteration
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from bevel.ir.axes import Dim
from bevel.ir.site import Facts, Opaque, Site
from bevel.ir.strands import Occurrence, occurrences


class Passage(NamedTuple):
    """A value outside and inside; along the axis `iterations`, if any, the outer one has an entry an iteration."""

    outer: ir.Value | None
    inner: ir.Value
    iterations: int | None = None


class Pair(NamedTuple):
    """A dimension at a place of both values of a passage."""

    dim: Dim
    outer: Occurrence
    inner: Occurrence


def passages(site: Site) -> list[Passage]:
    """Return what passes into and out of the graphs inside a node; raises `Opaque` where that is not known."""
    found = _PASSAGES.get(site.node.op_type) if site.node.domain == "" else None
    if found is None:
        raise Opaque("nothing passes into its graphs or out of them")
    return list(found(site))


def pairs(passage: Passage, facts: Facts) -> tuple[list[Pair], list[tuple[Occurrence, Dim]]]:
    """Return the places that both values have, and those that stand for themselves."""
    outer = {} if passage.outer is None else dict(occurrences(passage.outer, facts))
    inner = dict(occurrences(passage.inner, facts))
    found = []
    for each, dim in inner.items():
        axis = each.axis + (passage.iterations is not None and each.axis >= passage.iterations)
        other = Occurrence(passage.outer, axis, each.path) if passage.outer else None
        if other is not None and outer.get(other) is dim:
            found.append(Pair(dim, other, each))
    met = {each for pair in found for each in (pair.outer, pair.inner)}
    return found, [(each, dim) for side in (outer, inner) for each, dim in side.items() if each not in met]


def _if(site: Site) -> Iterator[Passage]:
    for name in ("then_branch", "else_branch"):
        yield from _same(site.node.outputs, _body(site, name).outputs)


def _loop(site: Site) -> Iterator[Passage]:
    body, carried = _body(site, "body"), len(site.node.inputs) - 2
    yield from _carried(site, site.node.inputs[2:], body.inputs[2:], body.outputs[1 : 1 + carried])
    for outer, inner in zip(site.node.outputs[carried:], body.outputs[1 + carried :], strict=True):
        yield Passage(outer, inner, 0)


def _scan(site: Site) -> Iterator[Passage]:
    body, scanned = _body(site, "body"), site.integer("num_scan_inputs")
    carried = len(site.node.inputs) - scanned
    if site.version < 9:
        raise Opaque("Scan before opset 9 has a batch axis of its own")
    yield from _carried(site, site.node.inputs[:carried], body.inputs[:carried], body.outputs[:carried])
    taken, given = site.node.inputs[carried:], site.node.outputs[carried:]
    yield from _scanned(site, "scan_input_axes", taken, body.inputs[carried:])
    yield from _scanned(site, "scan_output_axes", given, body.outputs[carried:])


def _body(site: Site, name: str) -> ir.Graph:
    return site.node.attributes[name].as_graph()


def _same(outer: Sequence[ir.Value | None], inner: Sequence[ir.Value]) -> Iterator[Passage]:
    return (Passage(one, other) for one, other in zip(outer, inner, strict=True))


def _carried(
    site: Site, given: Sequence[ir.Value | None], before: Sequence[ir.Value], after: Sequence[ir.Value]
) -> Iterator[Passage]:
    """Yield what is carried from one iteration to the next, and out after the last one."""
    yield from _same(given, before)
    yield from _same(before, after)
    yield from _same(site.node.outputs[: len(after)], after)


def _scanned(site: Site, name: str, outer: Sequence[ir.Value | None], inner: Sequence[ir.Value]) -> Iterator[Passage]:
    axes = site.integer_list(name) or [0] * len(inner)
    for axis, one, other in zip(axes, outer, inner, strict=True):
        known = None if one is None else site.facts.of(one)
        yield Passage(one, other, None if known is None else site.position(axis, len(known)))


_PASSAGES: Mapping[str, Callable[[Site], Iterator[Passage]]] = {"If": _if, "Loop": _loop, "Scan": _scan}
