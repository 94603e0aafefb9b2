"""Attention operators of ONNX Runtime: projections and biases inside, packed operands, shared heads with caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bevel.errors import EditRefused
from bevel.ir.action import NONLINEAR, Action, Packed, Term
from bevel.ir.axes import ONE, Axis, fresh, product, total
from bevel.ir.coupling import Freedom, rule
from bevel.ir.resize import Resize, Statement, Write, attribute_sizes
from bevel.ir.rules.attention import (
    RECURRENT,
    Heads,
    alone,
    attending,
    caches,
    count_heads,
    linear_attention,
    match,
    match_scores,
    quotient,
    scale_statement,
    silence,
)
from bevel.ir.rules.fixed import MICROSOFT, pin, positions
from bevel.ir.rules.normalization import STATISTICS
from bevel.ir.rules.rotary import head_axis, rotated
from bevel.ir.site import POSITIONS, Opaque, Site

_HEAD_MULTIPLE = 8  # GroupQueryAttention refuses other widths of a head, and twice as much where pairs turn
_THREE = 3  # query, key and value side by side in a packed operand
# Operands that have no input of their own: the parts of a packed weight, and those of a bias.
_WEIGHTS, _BIASES = (20, 21, 22), (30, 31, 32)

rule("LinearAttention", domain=MICROSOFT, acts=RECURRENT)(linear_attention)

pin(
    *("DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "DecoderAttention"),
    *("PackedAttention", "PackedMultiHeadAttention", "PagedAttention", "SparseAttention", "LongformerAttention"),
    why="its operands are packed or cached in a layout of their own",
    domain=MICROSOFT,
)


def _projecting(site: Site) -> Action:
    """Queries, keys and values are products of the input with parts of the weight, with parts of the bias added."""
    sizes = _hidden_sizes(site)
    queries, keys, values = ((Term((0, weight)), Term((bias,))) for weight, bias in zip(_WEIGHTS, _BIASES, strict=True))
    packed = [Packed(index, sizes, operands) for index, operands in ((1, _WEIGHTS), (2, _BIASES))]
    cached = alone(4)
    action = attending(queries, (*keys, *cached), (*values, *cached), packed=packed)
    return replace(action, others=((1, (*keys, *values, *cached)),))


@rule("Attention", domain=MICROSOFT, acts=_projecting)
def projected_attention(site: Site) -> None:
    """Project the input to queries, keys and values by one weight `i (g d + g d + g e)`, and attend."""
    heads = _projected_heads(site, tied=site.has(4) or site.outputs > 1)
    _project(site, heads)
    if site.integer("do_rotary"):
        site.fix(heads.width, "its pairs turn together")
    _match_mask(site, 3, heads.batch)
    match_scores(site, 5, heads)
    site.set(0, heads.output(3))
    site.set(1, _stacked_cache(site, heads, 4))
    site.sums_over(site.axes(1)[0], 1, 0)
    silence(site, heads.width, (1, 1), (2, 0))
    segments = [product(heads.groups, axis) for axis in (heads.width, heads.width, heads.value_width)]
    site.states(attribute_sizes(site.node, "qkv_hidden_sizes", segments))


@rule("QAttention", domain=MICROSOFT)
def quantized_attention(site: Site) -> None:
    """State the same with integer weights, whose zero points keep every entry in its place."""
    heads = _projected_heads(site, tied=True)
    _project(site, heads)
    for index in (4, 7):
        if site.has(index):
            site.broadcast(site.axes(1)[1:], site.axes(index))
    _match_mask(site, 5, heads.batch)
    site.keep((site.axes(1)[0], heads.width), Freedom.PERMUTE, "it is reduced away by other means than a sum")
    if site.integer("do_rotary"):
        site.fix(heads.width, "its pairs turn together")
    site.set(0, heads.output(3))
    site.set(1, _stacked_cache(site, heads, 8))


def _projected_heads(site: Site, *, tied: bool) -> Heads:
    inputs, weights = site.axes(0), site.axes(1)
    if len(inputs) != 3 or len(weights) != 2:
        raise Opaque("its input or weight has an unexpected rank")
    count = site.integer("num_heads")
    sizes = _hidden_sizes(site)
    if sum(sizes) != weights[1].size or sizes[0] != sizes[1] or any(size % count for size in sizes):
        raise Opaque(f"its hidden sizes {sizes} do not fit {count} heads")
    width = fresh(sizes[0] // count)
    value_width = width if tied else fresh(sizes[2] // count)
    return Heads(inputs[0], inputs[1], inputs[1], fresh(count), ONE, width, value_width)


def _hidden_sizes(site: Site) -> tuple[int, ...]:
    """Return how wide queries, keys and values of all heads are."""
    return tuple(site.integer_list("qkv_hidden_sizes") or [quotient(site.axes(1)[1], _THREE)] * _THREE)


def _project(site: Site, heads: Heads) -> None:
    """State the axes of input, weight and bias."""
    inputs, weights = site.axes(0), site.axes(1)
    site.equate(inputs[2], weights[0])
    site.equate(weights[1], _side_by_side(heads))
    match(site, 2, (weights[1],))
    site.fix(heads.queries, POSITIONS)
    count_heads(site, ("num_heads",), (heads.groups,))
    site.states(scale_statement(site.node, heads.width))


def _side_by_side(heads: Heads) -> Axis:
    """Return the axis that holds queries, keys and values one after the other."""
    keys, values = product(heads.groups, heads.width), product(heads.groups, heads.value_width)
    return total(product(heads.all, heads.width), keys, values)


def _stacked_cache(site: Site, heads: Heads, past: int) -> Sequence[Axis]:
    """State past keys and values, stacked along a first axis of two, and return the axes of the present ones."""
    both, everything = fresh(2), heads.keys
    if site.has(past):
        before = site.axes(past)[3]
        match(site, past, (both, heads.batch, heads.groups, before, heads.width))
        everything = total(before, heads.keys)
    site.fix((both, everything), POSITIONS)
    return both, heads.batch, heads.groups, everything, heads.width


def _match_mask(site: Site, index: int, batch: Axis) -> None:
    """State a mask over keys, which may have one row for each sample; lengths and offsets fix the samples."""
    if not site.has(index):
        return
    axes = site.axes(index)
    if len(axes) == 1 and axes[0].size != batch.size:
        site.fix((batch, axes[0]), "offsets of its samples are given")
        return
    site.broadcast((batch,), axes[:1])
    site.fix(axes[1:], POSITIONS)


def _multiplying(site: Site) -> Action:
    """Each operand is an input of its own, and all biases are one; of other layouts nothing is claimed."""
    if len(site.axes(0)) != 3 or not site.has(2):
        return NONLINEAR
    width = site.axes(0)[2].size
    packed = [Packed(3, (width, width, site.axes(3)[0].size - 2 * width), _BIASES)] if site.has(3) else []
    queries, keys, values = (alone(*both) for both in enumerate(_BIASES))
    return attending(queries, (*keys, *alone(6)), (*values, *alone(7)), packed=packed)


@rule("MultiHeadAttention", domain=MICROSOFT, acts=_multiplying)
def multi_head_attention(site: Site) -> None:
    """State queries, keys and values apart, keys and values packed, or all three packed, with one bias for all."""
    if site.has(9):
        raise Opaque("its samples address each other")
    heads = _operands(site)
    match(site, 3, (_side_by_side(heads),))
    _match_mask(site, 4, heads.batch)
    match_scores(site, 5, heads)
    everything = caches(site, heads, 6, 1)
    if site.has(8):
        everything = positions(site, 2, output=1) if site.outputs > 1 else everything
    site.set(0, heads.output(3))
    site.set(3, (heads.batch, heads.all, heads.queries, everything))
    site.fix((heads.queries, heads.keys), POSITIONS)
    silence(site, heads.width, (0, len(site.axes(0)) - 1), (3, 0))
    count_heads(site, ("num_heads",), (heads.groups,))
    site.states(scale_statement(site.node, heads.width))


def _operands(site: Site) -> Heads:
    """State the operands in whichever layout they come."""
    query, count = site.axes(0), site.integer("num_heads")
    groups, batch, queries = fresh(count), query[0], query[1]
    if len(query) == 5:
        heads = Heads(batch, queries, queries, groups, ONE, query[4], query[4])
        match(site, 0, (batch, queries, groups, _apart(site, _THREE), query[4]))
        return heads
    key, width = site.axes(1), fresh(quotient(query[2], count))
    if len(key) == 5:
        heads = Heads(batch, queries, key[1], groups, ONE, width, width)
        match(site, 1, (batch, key[1], groups, _apart(site, 2), width))
    else:
        value = site.axes(2)
        tied = len(key) == 4 or site.has(6)  # keys and values of one cache have the same width
        value_width = width if tied else fresh(quotient(value[2], count))
        heads = Heads(batch, queries, key[-2], groups, ONE, width, value_width)
        match(site, 1, heads.key(len(key)))
        match(site, 2, heads.value(len(value)))
    match(site, 0, heads.query(3))
    return heads


def _apart(site: Site, count: int) -> Axis:
    """Return the axis that tells query, key and value apart."""
    axis = fresh(count)
    site.fix(axis, "it tells queries, keys and values apart")
    return axis


def _sharing(site: Site) -> Action:
    """One operand may hold all three; where heads are normalised inside, nothing is claimed."""
    if site.has(14) or site.has(15):
        return NONLINEAR
    packed = []
    if not site.has(1):
        many, few = site.integer("num_heads"), site.integer("kv_num_heads")
        each = quotient(site.axes(0)[2], many + 2 * few)
        packed = [Packed(0, (many * each, few * each, few * each), (0, 1, 2))]
    return attending(alone(0), alone(1, 3), alone(2, 4), packed=packed)


@rule("GroupQueryAttention", domain=MICROSOFT, acts=_sharing)
def group_query_attention(site: Site) -> None:
    """State query heads that share key-value heads, apart or packed in one operand, with caches and rotation."""
    if site.has(12) or site.has(13) or site.integer("kv_cache_bit_width"):
        raise Opaque("its cache is quantized")
    heads = _shared_heads(site)
    query = _side_by_side(heads) if not site.has(1) else product(heads.all, heads.width)
    match(site, 0, (heads.batch, heads.queries, query))
    match(site, 1, heads.key(3))
    match(site, 2, heads.value(3))
    everything = caches(site, heads, 3, 1)
    match(site, 5, (heads.batch,))
    _match_rotation(site, heads)
    match_scores(site, 10, heads)
    match(site, 11, (heads.all,))
    _match_norms(site, heads.width)
    site.set(0, heads.output(3))
    site.set(3, (heads.batch, heads.all, heads.queries, everything))
    site.fix((heads.queries, heads.keys, everything), POSITIONS)
    silence(site, heads.width, (0, 2))
    count_heads(site, ("num_heads", "kv_num_heads"), (heads.all, heads.groups))
    site.states(scale_statement(site.node, heads.width))
    site.states(_width_refused(site, heads.width))


def _shared_heads(site: Site) -> Heads:
    query = site.axes(0)
    many, few = site.integer("num_heads"), site.integer("kv_num_heads")
    if len(query) != 3 or few < 1 or many % few:
        raise Opaque(f"{many} query heads do not share {few} key-value heads")
    size = quotient(query[2], many if site.has(1) else many + 2 * few)
    width = _turning_width(site, size) if site.integer("do_rotary") else fresh(size)
    keys = site.axes(1)[1] if site.has(1) else query[1]
    return Heads(query[0], query[1], keys, fresh(few), fresh(many // few), width, width)


def _turning_width(site: Site, size: int) -> Axis:
    if not site.has(7):
        raise Opaque("the angles by which it turns pairs are not given")
    return head_axis(rotated(site, site.axes(7)[1], interleaved=bool(site.integer("rotary_interleaved"))), size)


def _match_rotation(site: Site, heads: Heads) -> None:
    """State the caches of angles, and the places at which they are read."""
    if site.has(7) and site.has(8):
        site.equate_all(site.axes(7), site.axes(8))
        site.fix(site.axes(7)[0], POSITIONS)
    if site.has(9):
        site.fix((heads.batch, *site.axes(9)), "the first sample's place may stand for all")


def _match_norms(site: Site, width: Axis) -> None:
    """State the gains by which each head of queries and keys is normalised."""
    for index in (14, 15):
        if site.has(index):
            match(site, index, (width,))
            site.keep(width, Freedom.PERMUTE, STATISTICS)


def _width_refused(site: Site, width: Axis) -> Statement:
    """State that heads have a width that the operator takes."""
    node = site.node
    multiple = 2 * _HEAD_MULTIPLE if site.integer("do_rotary") else _HEAD_MULTIPLE

    def follow(resize: Resize) -> Sequence[Write]:
        if resize.touches(width) and resize.of(width) % multiple:
            raise EditRefused(
                f"heads of {resize.of(width)} entries are no multiple of {multiple}",
                where=f"node {node.name!r} ({node.op_type})",
                remedy=f"keep a multiple of {multiple} entries in each head",
            )
        return ()

    return follow


@rule("RelativePositionBias", domain=MICROSOFT)
def relative_position_bias(site: Site) -> None:
    """Look up one bias for each head and distance."""
    table = site.axes(0)
    site.fix(table[0], "it is addressed by distance")
    site.set(0, (ONE, table[1], positions(site, 2), positions(site, 3)))
