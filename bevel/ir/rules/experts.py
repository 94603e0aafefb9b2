"""Mixtures of experts: experts, tokens and the hidden entries of the experts are free.

router       m e
first        e i c      i hidden entries of each of e experts; gates are `i + i`, or side by side `i p`
second       e c i
third        e i c
"""

from __future__ import annotations

from bevel.ir.axes import ONE, Axis, fresh, product, total
from bevel.ir.coupling import Freedom, rule
from bevel.ir.rules.attention import match
from bevel.ir.rules.fixed import MICROSOFT
from bevel.ir.site import Opaque, Site

_CHOSEN = "the best of its entries are chosen"
_PACKED = "its entries are packed into bytes"


@rule("MoE", domain=MICROSOFT)
def mixture(site: Site) -> None:
    """Send each token through the experts that its router chooses."""
    inputs, second = site.axes(0), site.axes(4)
    channels, hidden = inputs[-1], fresh(second[2].size)
    experts = _route(site)
    rows = _rows(site, hidden, hidden)
    match(site, 2, (experts, rows, channels))
    match(site, 3, (experts, rows))
    match(site, 4, (experts, channels, hidden))
    match(site, 5, (experts, channels))
    match(site, 6, (experts, hidden, channels))
    match(site, 7, (experts, hidden))
    site.sums_over(site.axes(2)[2], 2, 2)
    if site.has(6):
        site.sums_over(site.axes(6)[2], 6, 2)
    site.sums_over(hidden, 4, 2)
    site.set(0, inputs)


def _route(site: Site) -> Axis:
    """State the router, which has one row for each token, and return the axis of experts."""
    tokens, experts = site.axes(1)
    site.equate(product(*site.axes(0)[:-1]), tokens)
    site.keep(experts, Freedom.PERMUTE, _CHOSEN)
    return experts


def _rows(site: Site, hidden: Axis, gate: Axis) -> Axis:
    """Return the rows of the first weight, which may hold gates too."""
    fusion = site.integer("swiglu_fusion") if site.text("activation_type", "relu") == "swiglu" else 0
    if fusion == 0:
        return hidden
    if fusion != 1:
        return total(hidden, gate)
    pair = fresh(2)
    site.fix(pair, "an entry and its gate stand side by side")
    return product(hidden, pair)


@rule("QMoE", domain=MICROSOFT)
def quantized_mixture(site: Site) -> None:
    """State the same with integer weights: channels are packed into bytes, hidden entries move in whole blocks."""
    if site.text("quant_type", "int") != "int" or any(
        site.has(index) for index in (11, 12, 13, *range(15, site.inputs))
    ):
        raise Opaque("its weights have zero points or number formats that are packed in their own ways")
    inputs, first, second = site.axes(0), site.axes(2), site.axes(5)
    experts = _route(site)
    site.fix((inputs[-1], second[1], first[2]), _PACKED)
    hidden, packed, blocks = _packed_hidden(site, second[2])
    rows = _rows(site, hidden, hidden)
    match(site, 2, (experts, rows, first[2]))
    match(site, 5, (experts, inputs[-1], packed))
    match(site, 8, (experts, hidden, first[2]))
    for scales, bias, entries, inner in ((3, 4, rows, None), (6, 7, inputs[-1], blocks), (9, 10, hidden, None)):
        _match_scales(site, scales, experts, entries, inner)
        match(site, bias, (experts, entries))
    match(site, 14, site.axes(1))
    site.keep(hidden, Freedom.PERMUTE, "it is reduced away by other means than a sum")
    site.set(0, inputs)


def _packed_hidden(site: Site, stored: Axis) -> tuple[Axis, Axis, Axis]:
    """Return the hidden axis, as it is stored in bytes, and its blocks that have a scale each."""
    each = 8 // site.integer("fc2_expert_weight_bits", site.integer("expert_weight_bits", 4))
    block = site.integer("block_size") or each
    if stored.size * each % block or block % each:
        raise Opaque("its last block is shorter than the others")
    blocks, inner, within = fresh(stored.size * each // block), fresh(block // each), fresh(each)
    site.fix((inner, within), _PACKED)
    scaled = blocks if site.integer("block_size") else ONE
    return product(blocks, inner, within), product(blocks, inner), scaled


def _match_scales(site: Site, index: int, experts: Axis, rows: Axis, blocks: Axis | None) -> None:
    """State one scale for each row, or each of its blocks; blocks of channels are fixed."""
    if not site.has(index):
        return
    axes = site.axes(index)
    site.equate_all(axes[:2], (experts, rows))
    if len(axes) > 2 and blocks is not None:
        site.equate(axes[2], blocks)
    elif len(axes) > 2:
        site.fix(axes[2], _PACKED)
