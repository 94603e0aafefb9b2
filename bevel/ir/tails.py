"""Tails: the nodes that close every block after its sum, before the next one starts.

x1 = norm(x + f(x))    x2 = norm(x1 + g(x1))    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from heapq import heappop, heappush
from typing import Final, NamedTuple

import onnx_ir as ir

from bevel.ir.canonical.dead import subgraphs
from bevel.ir.residual import Block, computed

# A norm written out in single operators has eleven nodes.
LONGEST_TAIL: Final = 16


def with_tails(blocks: list[Block]) -> list[Block]:
    """Give those blocks a tail that end in one: the same nodes between a sum and the next block, more than once.

    The last of several blocks has no next one; its tail is that of the one before.
    """
    starts = {block.source for block in blocks}
    tails = {block: tail for block in blocks if (tail := _tail(block, starts)) is not None}
    kinds = [tail.kind for tail in tails.values()]
    usual: tuple[str, ...] | None = None
    found: list[Block] = []
    for block in blocks:
        tail = tails.get(block)
        if tail is None and usual is not None and block.end not in starts:
            tail = _tail(block, None, usual)
        if tail is not None and (tail.kind == usual or kinds.count(tail.kind) > 1 or len(blocks) == 2):
            usual = tail.kind
            block = replace(block, start=block.source if _alike(block.source, tail.end) else block.start, end=tail.end)
        found.append(block)
    return found


class _Tail(NamedTuple):
    """Nodes through which all of a sum passes, and the value that they make of it."""

    kind: tuple[str, ...]
    end: ir.Value


def _tail(block: Block, starts: set[ir.Value] | None, kind: tuple[str, ...] = ()) -> _Tail | None:
    """Follow a sum down to a value that everything else reads: one of `starts`, or what nodes of a `kind` make."""
    total = block.end
    if starts is not None and total in starts:
        return None
    inside, taken, waiting = {total}, dict[ir.Node, None](), list[tuple[int, ir.Node]]()
    _await(total, waiting, block.places)
    while waiting and len(taken) < LONGEST_TAIL:
        _, node = heappop(waiting)
        if node in taken:
            continue
        if not inside.issuperset(computed(node)) or subgraphs(node):
            return None
        taken[node] = None
        inside.update(node.outputs)
        for output in node.outputs:
            _await(output, waiting, block.places)
        end, kinds = _exit(inside, taken), tuple(node.op_type for node in taken)
        if end is not None and _alike(block.start, end) and (kinds == kind if starts is None else end in starts):
            return _Tail(kinds, end)
    return None


def _await(value: ir.Value, waiting: list[tuple[int, ir.Node]], places: Mapping[ir.Node, int]) -> None:
    """Queue the readers of a value by their place; those in inner graphs have none, and end the tail."""
    for node, _ in value.uses():
        if node in places:
            heappush(waiting, (places[node], node))


def _exit(inside: Iterable[ir.Value], taken: Mapping[ir.Node, None]) -> ir.Value | None:
    """Return the one value of those inside that is read outside."""
    leaving = [
        value for value in inside if value.is_graph_output() or any(node not in taken for node, _ in value.uses())
    ]
    return leaving[0] if len(leaving) == 1 else None


def _alike(left: ir.Value, right: ir.Value) -> bool:
    """Say whether one value can stand for another."""
    return left.dtype == right.dtype and left.shape is not None and left.shape == right.shape
