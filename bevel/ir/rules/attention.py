"""Attention operators: heads stay whole, the width of queries and keys is summed over, that of values flows on.

    query   b s (g r d)     g key-value heads, each with r query heads, each of width d
    key     b t (g d)
    value   b t (g e)
    output  b s (g r e)

A motion of the queries' width needs the opposite one of the keys', so that the scores stay as they are; what the
node makes of the scores does not matter then. One of the values' width comes out again. Caches follow what is cached.

Positions are fixed. Dropping entries of `d` leaves the scale of the products as it was, so that it is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bevel.ir.action import Action, Inner, Packed, Term
from bevel.ir.axes import Axis, fresh, product, total
from bevel.ir.coupling import rule
from bevel.ir.resize import Resize, Statement, Write, attribute_size
from bevel.ir.site import POSITIONS, Axes, Opaque, Site
from bevel.ir.sizes import is_symbolic


@dataclass(frozen=True)
class Heads:
    """The axes that all attention operators share."""

    batch: Axis
    queries: Axis
    keys: Axis
    groups: Axis
    repeats: Axis
    width: Axis
    value_width: Axis

    @property
    def all(self) -> Axis:
        """All query heads: each key-value head with the query heads that share it."""
        return product(self.groups, self.repeats)

    def query(self, rank: int) -> Axes:
        """Return the axes of the queries."""
        return _laid_out(rank, self.batch, self.all, self.queries, self.width)

    def key(self, rank: int) -> Axes:
        """Return the axes of the keys."""
        return _laid_out(rank, self.batch, self.groups, self.keys, self.width)

    def value(self, rank: int) -> Axes:
        """Return the axes of the values."""
        return _laid_out(rank, self.batch, self.groups, self.keys, self.value_width)

    def output(self, rank: int) -> Axes:
        """Return the axes of the result."""
        return _laid_out(rank, self.batch, self.all, self.queries, self.value_width)


def _laid_out(rank: int, batch: Axis, heads: Axis, positions: Axis, width: Axis) -> Axes:
    return (batch, heads, positions, width) if rank == 4 else (batch, positions, product(heads, width))


def quotient(axis: Axis, count: int) -> int:
    """Return the width of one of `count` equal parts of an axis."""
    if count < 1 or is_symbolic(axis.size) or axis.size % count:
        raise Opaque(f"an axis of size {axis.size} holds no {count} heads")
    return axis.size // count


def match(site: Site, index: int, axes: Sequence[Axis]) -> None:
    """State the axes of an input, if it is given."""
    if site.has(index):
        site.equate_all(site.axes(index), axes)


def match_scores(site: Site, index: int, heads: Heads) -> None:
    """State the axes of an addend to the scores, which broadcasts; it may end before the last key."""
    if not site.has(index):
        return
    axes = site.axes(index)
    site.broadcast((heads.batch, heads.all, heads.queries), axes[:-1])
    site.fix(axes[-1:], POSITIONS)


def caches(site: Site, heads: Heads, past: int, present: int) -> Axis:
    """State the axes of past and present keys and values, and return all positions attended to."""
    everything = heads.keys
    if site.has(past):
        before = site.axes(past)[2] if len(site.axes(past)) == 4 else fresh(0)
        site.fix(before, POSITIONS)
        match(site, past, (heads.batch, heads.groups, before, heads.width))
        match(site, past + 1, (heads.batch, heads.groups, before, heads.value_width))
        everything = total(before, heads.keys)
    site.set(present, (heads.batch, heads.groups, everything, heads.width))
    site.set(present + 1, (heads.batch, heads.groups, everything, heads.value_width))
    return everything


def silence(site: Site, axis: Axis, *places: tuple[int, int]) -> None:
    """State that entries are dropped by zeroing them in each of several operands."""
    for index, position in places:
        if site.has(index):
            place = fresh(axis.size)
            site.equate(place, axis)
            site.sums_over(place, index, position)


def scale_statement(node: ir.Node, width: Axis) -> Statement:
    """State that the scale comes from the width of a head as it is now, unless the node says otherwise."""

    def follow(resize: Resize) -> Sequence[Write]:
        given = node.attributes.get("scale")
        if not resize.touches(width) or (given is not None and given.as_float()):
            return ()
        return [lambda: node.attributes.add(ir.AttrFloat32("scale", width.size**-0.5))]

    return follow


def count_heads(site: Site, names: Sequence[str], axes: Sequence[Axis]) -> None:
    """State that attributes, where they are given, count heads."""
    for name, axis in zip(names, axes, strict=True):
        if site.integer(name):
            site.states(attribute_size(site.node, name, axis))


def attending(
    queries: Sequence[Term], keys: Sequence[Term], values: Sequence[Term], *, packed: Sequence[Packed] = ()
) -> Action:
    """Return the action of scores, which are inner products of queries and keys, times values.

    Keys and values are sums of terms; what is cached of them stands beside the new ones and has to be multiplied alike,
    as if it were added. It comes out again, as outputs 1 and 2.
    """
    return Action(
        tuple(values),
        outputs=1,
        inner=Inner(tuple(queries), tuple(keys)),
        others=((1, tuple(keys)), (2, tuple(values))),
        packed=tuple(packed),
    )


def alone(*operands: int) -> tuple[Term, ...]:
    """Return a term for each of some operands."""
    return tuple([Term((each,)) for each in operands])


@rule("Attention", acts=attending(alone(0), alone(1, 4), alone(2, 5)))
def attention(site: Site) -> None:
    """State queries, keys and values of rank 3 or 4, whose query heads may share key-value heads."""
    heads = _heads(site)
    rank = len(site.axes(0))
    match(site, 0, heads.query(rank))
    match(site, 1, heads.key(len(site.axes(1))))
    match(site, 2, heads.value(len(site.axes(2))))
    match_scores(site, 3, heads)
    match(site, 6, (heads.batch,))
    everything = caches(site, heads, 4, 1)
    site.set(0, heads.output(rank))
    site.set(3, (heads.batch, heads.all, heads.queries, everything))
    site.fix((heads.queries, heads.keys), POSITIONS)
    silence(site, heads.width, (0, rank - 1))
    count_heads(site, ("q_num_heads", "kv_num_heads"), (heads.all, heads.groups))
    site.states(scale_statement(site.node, heads.width))


def _heads(site: Site) -> Heads:
    query, key, value = site.axes(0), site.axes(1), site.axes(2)
    if {len(query), len(key), len(value)} - {3, 4}:
        raise Opaque("its operands have neither three nor four axes")
    many = query[1].size if len(query) == 4 else site.integer("q_num_heads")
    few = key[1].size if len(key) == 4 else site.integer("kv_num_heads")
    if few < 1 or many % few or is_symbolic(many):
        raise Opaque(f"{many} query heads do not share {few} key-value heads")
    width = query[3].size if len(query) == 4 else quotient(query[2], many)
    value_width = value[3].size if len(value) == 4 else quotient(value[2], few)
    return Heads(query[0], query[-2], key[-2], fresh(few), fresh(many // few), fresh(width), fresh(value_width))


# Values and the state that they make are multiplied alike; queries and keys stay as they are.
_WRITTEN = alone(2, 3)
RECURRENT = Action(_WRITTEN, outputs=1, others=((1, _WRITTEN),))


@rule("LinearAttention", acts=RECURRENT)
def linear_attention(site: Site) -> None:
    """State a recurrence over outer products of keys and values, one state a head."""
    query, key, value = site.axes(0), site.axes(1), site.axes(2)
    many, few = site.integer("q_num_heads"), site.integer("kv_num_heads")
    if few < 1 or many % few or any(len(axes) != 3 for axes in (query, key, value)):
        raise Opaque(f"{many} query heads do not share {few} key-value heads")
    width, value_width = fresh(quotient(query[2], many)), fresh(quotient(value[2], few))
    heads = Heads(query[0], query[1], query[1], fresh(few), fresh(many // few), width, value_width)
    match(site, 0, heads.query(3))
    match(site, 1, heads.key(3))
    match(site, 2, heads.value(3))
    state = (heads.batch, heads.groups, width, value_width)
    match(site, 3, state)
    _match_gates(site, heads)
    site.set(0, heads.output(3))
    site.set(1, state)
    site.fix(heads.queries, POSITIONS)
    silence(site, width, (0, 2), (1, 2))
    count_heads(site, ("q_num_heads", "kv_num_heads"), (heads.all, heads.groups))
    site.states(scale_statement(site.node, width))


def _match_gates(site: Site, heads: Heads) -> None:
    """State decay, one for each head or each of its entries, and update rate, one for each head or for all."""
    for index in (4, 5):
        if site.has(index):
            gates = site.axes(index)[-1]
            whole = index == 4 and gates.size != heads.groups.size
            last = product(heads.groups, heads.width) if whole else heads.groups
            site.broadcast((heads.batch, heads.queries, last), site.axes(index))
