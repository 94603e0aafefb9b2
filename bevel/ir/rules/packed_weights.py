"""Products with weights quantized in blocks: rows are free, blocks move as a whole, entries within a byte stay.

A  ... (q b)     q blocks of b entries
B  n q _         each block packed into bytes
"""

from __future__ import annotations

import onnx_ir as ir

from bevel.ir.axes import Axis, fresh, product
from bevel.ir.coupling import Coupling, rule
from bevel.ir.resize import attribute_size
from bevel.ir.rules.fixed import MICROSOFT, pin
from bevel.ir.rules.indexing import BY_VALUE
from bevel.ir.site import Axes, Opaque, Site

_PACKED = "its entries are packed into bytes"

pin("MatMulFpQ4", why=_PACKED, domain=MICROSOFT)


@rule("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(site: Site) -> None:
    """Multiply with rows of packed blocks; scales and zero points follow rows and blocks."""
    if site.integer("weight_prepacked"):
        raise Opaque("its weight is packed for one device")
    inputs, weight = site.axes(0), site.axes(1)
    rows, blocks, blob = weight
    site.fix(blob, _PACKED)
    _match_inputs(site, inputs[-1], blocks)
    _match_blocks(site, 2, rows, blocks, packed=False)
    _match_blocks(site, 3, rows, blocks, packed=_is_packed(site, 3) and site.integer("bits", 4) < 8)
    if site.has(4):
        site.fix((inputs[-1], blocks, *site.axes(4)), "its entries are grouped by place")
    if site.has(5):
        site.equate(site.axes(5)[0], rows)
    site.set(0, (*inputs[:-1], rows))
    site.states(attribute_size(site.node, "N", rows))


def _match_inputs(site: Site, axis: Axis, blocks: Axis) -> None:
    block = site.integer("block_size")
    if axis.size != blocks.size * block:
        site.fix((axis, blocks), "its last block is shorter than the others")
        return
    entries = fresh(block)
    site.fix(entries, _PACKED)
    whole = product(blocks, entries)
    site.equate(axis, whole)
    site.sums_over(blocks, 0, len(site.axes(0)) - 1)
    site.states(attribute_size(site.node, "K", whole))


def _match_blocks(site: Site, index: int, rows: Axis, blocks: Axis, *, packed: bool) -> None:
    """State one entry for each row and block, flat or not; packed ones fix the blocks."""
    if not site.has(index):
        return
    axes = site.axes(index)
    last = blocks
    if packed:
        site.fix(blocks, _PACKED)
        last = fresh(product(*axes).size // rows.size)
        site.fix(last, _PACKED)
    site.equate(product(*axes), product(rows, last))


def _is_packed(site: Site, index: int) -> bool:
    return site.has(index) and site.value(index).dtype is ir.DataType.UINT8


@rule("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(site: Site) -> Coupling:
    """Multiply with a weight packed across rows: only the samples are free."""
    return Coupling("... _, ?, ? -> ... n", sizes={"n": site.integer("N")}, fixed="n")


@rule("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(site: Site) -> None:
    """Take entries of one axis by value and restore them block by block along another."""
    data, indices, scales = site.axes(0), site.axes(1), site.axes(2)
    gathered = site.position(site.integer("gather_axis"), len(data))
    quantized = site.position(site.integer("quantize_axis", 1), len(data))
    if gathered == quantized or len(scales) != len(data):
        raise Opaque("it takes entries along the axis of its blocks")
    restored = list(data)
    restored[quantized] = _restored(site, data[quantized], scales[quantized])
    site.fix(data[gathered], BY_VALUE)
    for index in (2, 3):
        if site.has(index):
            _match_tables(site, index, data, quantized)
    site.set(0, (*restored[:gathered], *indices, *restored[gathered + 1 :]))


def _restored(site: Site, axis: Axis, blocks: Axis) -> Axis:
    """Return the axis of restored entries, of which a byte holds some."""
    each = 8 // site.integer("bits", 4) if _is_packed(site, 0) else 1
    block = site.integer("block_size", 128)
    if axis.size * each != blocks.size * block or block % each:
        raise Opaque("its last block is shorter than the others")
    stored, entries = fresh(block // each), fresh(block)
    site.fix((stored, entries), _PACKED)
    site.equate(axis, product(blocks, stored))
    return product(blocks, entries)


def _match_tables(site: Site, index: int, data: Axes, quantized: int) -> None:
    """State scales or zero points: one for each block, and for each entry of the other axes or for all."""
    axes, blocks = site.axes(index), site.axes(2)[quantized]
    for place, axis in enumerate(axes):
        if place != quantized and axis.size != 1:
            site.equate(axis, data[place])
    if axes[quantized].size == blocks.size:
        site.equate(axes[quantized], blocks)
    if index == 3 and _is_packed(site, index) and site.integer("bits", 4) < 8:
        site.fix((blocks, axes[quantized]), _PACKED)
