"""Rotary position embedding: an entry and its partner turn together, so pairs stay together."""

from __future__ import annotations

from bevel.ir.action import LINEAR
from bevel.ir.axes import Axis, fresh, product, total
from bevel.ir.coupling import rule
from bevel.ir.resize import attribute_size
from bevel.ir.rules.attention import count_heads, match, quotient
from bevel.ir.rules.fixed import MICROSOFT
from bevel.ir.site import POSITIONS, Axes, Opaque, Site


@rule("RotaryEmbedding", acts=LINEAR)
def rotary_embedding(site: Site) -> None:
    """Turn the pairs of each head by angles that caches hold for each position."""
    _rotate(site, site.axes(0), ids=3, cosine=1)


@rule("RotaryEmbedding", domain=MICROSOFT, acts=LINEAR)
def rotary_embedding_microsoft(site: Site) -> None:
    """Turn the pairs of each head; without a count of heads the caches tell the width of one."""
    _rotate(site, site.axes(0), ids=1, cosine=2)


def _rotate(site: Site, axes: Axes, ids: int, cosine: int) -> None:
    pairs = site.axes(cosine)[-1]
    turned = rotated(site, pairs, interleaved=bool(site.integer("interleaved")))
    heads, width = _split(site, axes, turned)
    head = head_axis(turned, width)
    batch, positions = axes[0], axes[-2]
    whole = (batch, heads, positions, head) if len(axes) == 4 else (batch, positions, product(heads, head))
    match(site, 0, whole)
    _match_caches(site, batch, ids, cosine)
    site.fix(positions, POSITIONS)
    site.set(0, whole)
    count_heads(site, ("num_heads",), (heads,))
    if site.integer("rotary_embedding_dim"):
        site.states(attribute_size(site.node, "rotary_embedding_dim", turned))


def rotated(site: Site, pairs: Axis, *, interleaved: bool) -> Axis:
    """Return the axis of all entries that turn: partners side by side, or in two halves."""
    if not interleaved:
        return total(pairs, pairs)
    partners = fresh(2)
    site.fix(partners, "an entry and its partner stand side by side")
    return product(pairs, partners)


def head_axis(turned: Axis, width: int) -> Axis:
    """Return the axis of a head, of which some entries turn and the rest do not."""
    if width < turned.size:
        raise Opaque(f"{turned.size} entries cannot turn in a head of {width}")
    return total(turned, fresh(width - turned.size)) if width > turned.size else turned


def _split(site: Site, axes: Axes, turned: Axis) -> tuple[Axis, int]:
    """Return the heads and the width of one."""
    if len(axes) == 4:
        return axes[1], axes[3].size
    if len(axes) != 3:
        raise Opaque("its input has neither three nor four axes")
    count = site.integer("num_heads") or quotient(axes[2], turned.size)
    return fresh(count), quotient(axes[2], count)


def _match_caches(site: Site, batch: Axis, ids: int, cosine: int) -> None:
    """State the angles: a table addressed by position, or one row for each position of each sample."""
    for index in (cosine, cosine + 1):
        match(site, index, (*site.axes(index)[:-1], site.axes(cosine)[-1]))
        site.fix(site.axes(index)[-2:-1], POSITIONS)
        if len(site.axes(index)) == 3:
            site.broadcast((batch,), site.axes(index)[:1])
    if site.has(ids) and len(site.axes(ids)) == 2:
        site.broadcast((batch,), site.axes(ids)[:1])
        site.fix(site.axes(ids)[1], POSITIONS)
