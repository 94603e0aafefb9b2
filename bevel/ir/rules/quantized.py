"""Quantized operators: scales and zero points have the axes they quantize.

Integer products respect the zero points of both operands, so an entry cannot be dropped by zeroing it: contracted axes
allow any order, and keep all their entries.
"""

from __future__ import annotations

from bevel.ir.axes import Axis, fresh, product, total
from bevel.ir.coupling import Coupling, Freedom, rule
from bevel.ir.resize import attribute_size
from bevel.ir.rules.fixed import MICROSOFT
from bevel.ir.rules.normalization import STATISTICS
from bevel.ir.rules.spatial import spatial
from bevel.ir.site import Axes, Opaque, Site


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def quantize(site: Site) -> None:
    """Round or restore each entry, by one scale, one for each entry of an axis, or one for each block of it."""
    axes = site.axes(0)
    for index in range(1, site.inputs):
        if site.has(index):
            _align_scale(site, axes, site.axes(index))
    site.set(0, axes)


def _align_scale(site: Site, axes: Axes, scale: Axes) -> None:
    block = site.integer("block_size")
    if not block and all(axis.size == 1 for axis in scale):
        return
    place = site.position(site.integer("axis", 1), len(axes))
    if not block and len(scale) == 1:
        site.equate(axes[place], scale[0])
        return
    if not block or len(scale) != len(axes):
        raise Opaque(f"its scales of rank {len(scale)} do not fit an operand of rank {len(axes)}")
    site.equate_all((*axes[:place], *axes[place + 1 :]), (*scale[:place], *scale[place + 1 :]))
    _align_blocks(site, axes[place], scale[place], block)


def _align_blocks(site: Site, axis: Axis, blocks: Axis, block: int) -> None:
    if axis.size != blocks.size * block:
        site.fix((axis, blocks), "its last block is shorter than the others")
        return
    entries = fresh(block)
    site.equate(axis, product(blocks, entries))
    site.states(attribute_size(site.node, "block_size", entries))


@rule("DynamicQuantizeLinear")
def dynamic_quantize(site: Site) -> None:
    """Round each entry by a scale that comes from the extremes of all."""
    axes = site.axes(0)
    site.keep(axes, Freedom.PERMUTE, STATISTICS)
    for index, output in enumerate((axes, (), ())):
        site.set(index, output)


@rule("QLinearConv")
@rule("QLinearConv", domain=MICROSOFT)
def qlinear_conv(site: Site) -> Coupling:
    """State a convolution of integers, with one scale or one for each output channel."""
    x, y = ("n * (g i)", "n * (g o)") if site.integer("channels_last") else ("n (g i) *", "n (g o) *")
    scale, zero = _scale(site, 4, "(g o)"), _scale(site, 5, "(g o)")
    return Coupling(
        f"{x}, ., ., (g o) i *, {scale}, {zero}, ., ., (g o) -> {y}",
        sizes={"g": site.integer("group", 1)},
        states={"group": "g"},
    )


@rule("QLinearMatMul")
def qlinear_matmul(site: Site) -> Coupling:
    """State a matrix product of integers, with one scale, or one for each row or column."""
    left, right, output = _matrices(site, 0, 3)
    rows = f"{_row_scale(site, 1)}, {_row_scale(site, 2)}"
    columns = f"{_column_scale(site, 4)}, {_column_scale(site, 5)}"
    result = f"{_row_scale(site, 6)}, {_row_scale(site, 7)}"
    return Coupling(f"{left}, {rows}, {right}, {columns}, {result} -> {output}")


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(site: Site) -> Coupling:
    """State a matrix product of integers whose result is scaled back."""
    left, right, output = _matrices(site, 0, 1)
    scales = f"{_row_scale(site, 2)}, {_column_scale(site, 3)}, {_row_scale(site, 4)}, {_column_scale(site, 5)}"
    return Coupling(f"{left}, {right}, {scales}, j -> {output}")


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(site: Site) -> Coupling:
    """State a matrix product whose left operand is quantized by its extremes."""
    left, right, output = _matrices(site, 0, 1)
    site.keep(site.axes(0), Freedom.PERMUTE, STATISTICS)
    return Coupling(f"{left}, {right}, {_column_scale(site, 2)}, {_column_scale(site, 3)}, j -> {output}")


@rule("QGemm", domain=MICROSOFT)
def qgemm(site: Site) -> Coupling:
    """State a matrix product of integers with an addend."""
    left = "k m" if site.integer("transA") else "m k"
    right = "n k" if site.integer("transB") else "k n"
    scales = f"{_scale(site, 4, 'n')}, {_scale(site, 5, 'n')}"
    addend = "." if not site.has(6) else " ".join(_words(site.axes(6), "m n")) or "."
    return Coupling(f"{left}, ., ., {right}, {scales}, {addend}, ., . -> m n")


def _matrices(site: Site, left: int, right: int) -> tuple[str, str, str]:
    """Write the operands and the result of numpy's matrix product; a vector has only the contracted axis."""
    rows, columns = len(site.axes(left)) > 1, len(site.axes(right)) > 1
    leading = "... " if rows or columns else ""
    output = f"{leading}{'i ' if rows else ''}{'j' if columns else ''}"
    return "... i k" if rows else "k", "... k j" if columns else "k", output


def _scale(site: Site, index: int, vector: str, full: str = "") -> str:
    """Write a scale or zero point: one for all, a vector, or one that broadcasts."""
    if not site.has(index) or all(axis.size == 1 for axis in site.axes(index)):
        return "."
    return vector if len(site.axes(index)) == 1 else full or vector


def _row_scale(site: Site, index: int) -> str:
    return _scale(site, index, "i", "... i 1")


def _column_scale(site: Site, index: int) -> str:
    return _scale(site, index, "j", "... 1 j")


def _words(axes: Axes, words: str) -> list[str]:
    names = words.split()[-len(axes) :] if axes else []
    return ["1" if axis.size == 1 else name for axis, name in zip(axes, names, strict=True)]


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_broadcasting(site: Site) -> None:
    """State that operands are aligned at the right."""
    site.set(0, site.broadcast(site.axes(0), site.axes(3)))


@rule("QLinearWhere", domain=MICROSOFT)
def qlinear_where(site: Site) -> None:
    """State that condition and both sources are aligned at the right."""
    site.set(0, site.broadcast(site.axes(0), site.axes(1), site.axes(4)))


@rule("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_pointwise(site: Site) -> None:
    """State that the output has the axes of the input."""
    site.set(0, site.axes(0))


@rule("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(site: Site) -> None:
    """Normalise over one axis, or before opset 13 over all axes from one on."""
    axes = site.axes(0)
    last = site.integer("opset") >= 13
    place = site.position(site.integer("axis", -1), len(axes))
    site.keep(axes[place : place + 1] if last else axes[place:], Freedom.PERMUTE, STATISTICS)
    site.set(0, axes)


@rule("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(site: Site) -> None:
    """Lay operands end to end; each stands before its scale and zero point."""
    operands = [site.axes(index) for index in range(2, site.inputs, 3)]
    first = operands[0]
    place = site.position(site.integer("axis"), len(first))
    for axes in operands[1:]:
        site.equate_all((*first[:place], *first[place + 1 :]), (*axes[:place], *axes[place + 1 :]))
    site.set(0, (*first[:place], total(*(axes[place] for axes in operands)), *first[place + 1 :]))


@rule("QLinearAveragePool", domain=MICROSOFT)
def qlinear_pool(site: Site) -> Coupling:
    """Average windows of positions."""
    words = "n * c" if site.integer("channels_last") else "n c *"
    return Coupling(f"{words}, ., ., ., . -> {words}")


@rule("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_pool(site: Site) -> Coupling:
    """Average all positions."""
    words = spatial(site)
    ones = " ".join("1" for _ in words.split())
    last = site.integer("channels_last")
    before, after = (f"n {words} c", f"n {ones} c") if last else (f"n c {words}", f"n c {ones}")
    return Coupling(f"{before}, ., ., ., . -> {after}", statistics=words.split())
