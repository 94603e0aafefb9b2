"""If, Loop and Scan: what their bodies compute is coupled with what goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from bevel.ir.axes import fresh
from bevel.ir.site import Axes, Opaque, Site

ReadGraph: TypeAlias = Callable[[ir.Graph], None]

_ITERATIONS = "one entry an iteration"


def _if(site: Site, read: ReadGraph) -> None:
    branches = [site.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        read(branch)
    for index, (left, right) in enumerate(zip(branches[0].outputs, branches[1].outputs, strict=True)):
        _join(site, index, site.facts.of(left), site.facts.of(right))


def _join(site: Site, index: int, left: Axes | None, right: Axes | None) -> None:
    """Equate the two sources of an output; where their ranks differ, nothing may change."""
    if left is not None and right is not None and len(left) == len(right):
        site.equate_all(left, right)
        site.set(index, left)
        return
    for axes in (left, right, site.facts.of(site.node.outputs[index])):
        site.fix(axes or (), "its branches have different ranks")


def _loop(site: Site, read: ReadGraph) -> None:
    body = site.node.attributes["body"].as_graph()
    carried = len(site.node.inputs) - 2
    _carry(site, site.node.inputs[2:], body.inputs[2:])
    read(body)
    _return(site, body.inputs[2:], body.outputs[1 : 1 + carried])
    for index, value in enumerate(body.outputs[1 + carried :], start=carried):
        _stack(site, index, value, 0)


def _scan(site: Site, read: ReadGraph) -> None:
    if site.version < 9:
        raise Opaque("Scan before opset 9 has a batch axis of its own")
    body = site.node.attributes["body"].as_graph()
    scanned = site.integer("num_scan_inputs")
    carried = len(site.node.inputs) - scanned
    _carry(site, site.node.inputs[:carried], body.inputs[:carried])
    input_axes = site.integer_list("scan_input_axes") or [0] * scanned
    for axis, outer, inner in zip(input_axes, site.node.inputs[carried:], body.inputs[carried:], strict=True):
        axes = None if outer is None else site.facts.of(outer)
        if axes is not None:
            place = site.position(axis, len(axes))
            site.fix(axes[place], _ITERATIONS)
            site.facts.axes[inner] = (*axes[:place], *axes[place + 1 :])
    read(body)
    _return(site, body.inputs[:carried], body.outputs[:carried])
    output_axes = site.integer_list("scan_output_axes") or [0] * (len(body.outputs) - carried)
    for index, (axis, value) in enumerate(zip(output_axes, body.outputs[carried:], strict=True), start=carried):
        _stack(site, index, value, axis)


def _carry(site: Site, outer: Sequence[ir.Value | None], inner: Sequence[ir.Value]) -> None:
    """Give the body's inputs the axes of what goes in."""
    for source, value in zip(outer, inner, strict=True):
        axes = None if source is None else site.facts.of(source)
        if axes is not None:
            site.facts.axes[value] = axes


def _return(site: Site, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    """Equate what an iteration leaves with what the next one takes."""
    for index, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
        _join(site, index, site.facts.of(before), site.facts.of(after))


def _stack(site: Site, index: int, value: ir.Value, axis: int) -> None:
    """State that an output holds one entry an iteration along an axis."""
    axes = site.facts.of(value)
    sizes = site.output_sizes(index)
    if axes is None or (sizes is not None and len(sizes) != len(axes) + 1):
        site.fix(axes or (), "its stacked output has an unknown rank")
        return
    place = site.position(axis, len(axes) + 1)
    name = site.node.outputs[index].name
    iterations = fresh(sizes[place] if sizes else site.facts.symbols.unknown(f"{name}[{place}]"))
    site.fix(iterations, _ITERATIONS)
    site.set(index, (*axes[:place], iterations, *axes[place:]))


BODIES: Mapping[str, Callable[[Site, ReadGraph], None]] = {"If": _if, "Loop": _loop, "Scan": _scan}
