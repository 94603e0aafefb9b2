"""Operators that sum products over an axis: matrix products, convolutions, Einsum."""

from __future__ import annotations

from bevel.ir.action import AFFINE, CONTRACTED, MULTIPLIED
from bevel.ir.coupling import Coupling, rule
from bevel.ir.site import Opaque, Site


@rule("MatMul", acts=MULTIPLIED)
def matmul(site: Site) -> Coupling:
    """State numpy's matrix product; a vector has only the contracted axis."""
    return matrix_product(site)


def matrix_product(site: Site, scales: str = "", sums: str = "k") -> Coupling:
    """Return the equation of a matrix product; `scales` lists what follows the two operands."""
    rows, columns = len(site.axes(0)) > 1, len(site.axes(1)) > 1
    left = "... i k" if rows else "k"
    right = "... k j" if columns else "k"
    output = f"{'... ' if rows or columns else ''}{'i ' if rows else ''}{'j' if columns else ''}"
    return Coupling(f"{left}, {right}{scales} -> {output}", sums=sums)


@rule("MatMulInteger")
def matmul_integer(site: Site) -> Coupling:
    """State an integer matrix product; dropping entries would have to respect the zero points."""
    left = _zero_point(site, 2, "... i _", "i")
    right = _zero_point(site, 3, "... _ j", "j")
    return matrix_product(site, f", {left}, {right}", sums="")


def _zero_point(site: Site, index: int, full: str, vector: str) -> str:
    if not site.has(index) or len(site.axes(index)) == 0 or site.axes(index)[0].size == 1:
        return "."
    return vector if len(site.axes(index)) == 1 else full


@rule("Gemm", acts=AFFINE)
def gemm(site: Site) -> Coupling:
    """State a matrix product with either operand transposed and an addend that broadcasts."""
    left = "k m" if site.integer("transA") else "m k"
    right = "n k" if site.integer("transB") else "k n"
    return Coupling(f"{left}, {right}, {_addend(site, 2, 'm n')} -> m n", sums="k")


def _addend(site: Site, index: int, words: str) -> str:
    """Write an operand that broadcasts to the given axes: those of size one stand apart."""
    if not site.has(index):
        return "."
    axes = site.axes(index)
    names = words.split()[-len(axes) :] if axes else []
    return " ".join("1" if axis.size == 1 else name for axis, name in zip(axes, names, strict=True)) or "."


@rule("Conv", acts=AFFINE)
@rule("ConvInteger")
def conv(site: Site) -> Coupling:
    """State a convolution, plain, grouped or depthwise: taps and positions are fixed."""
    integer = site.node.op_type == "ConvInteger"
    rest = f", ., {'.' if _scalar(site, 3) else '(g o)'}" if integer else ", (g o)"
    return Coupling(
        f"n (g i) *, (g o) i *{rest} -> n (g o) *",
        sizes={"g": site.integer("group", 1)},
        sums=() if integer else "i",
        states={"group": "g"},
    )


def _scalar(site: Site, index: int) -> bool:
    return not site.has(index) or all(axis.size == 1 for axis in site.axes(index))


@rule("ConvTranspose", acts=AFFINE)
def conv_transpose(site: Site) -> Coupling:
    """State a transposed convolution: the weight holds inputs first, outputs per group second."""
    return Coupling(
        "n (g i) *, (g i) o *, (g o) -> n (g o) *",
        sizes={"g": site.integer("group", 1)},
        sums="i",
        states={"group": "g"},
    )


@rule("DeformConv")
def deform_conv(site: Site) -> Coupling:
    """State a deformable convolution; its offset groups cut across the channels, so inputs stay."""
    return Coupling(
        "n (g i) *, (g o) i *, n _ *, (g o), n _ * -> n (g o) *",
        sizes={"g": site.integer("group", 1)},
        fixed="gi",
        states={"group": "g"},
    )


@rule("CausalConvWithState")
def causal_conv(site: Site) -> Coupling:
    """State a depthwise convolution over time with the state carried along."""
    return Coupling("n c _, c 1 _, c, n c _ -> n c _, n c _")


@rule("Einsum", acts=CONTRACTED)
def einsum(site: Site) -> Coupling:
    """Read the equation: it is a rule already."""
    equation = site.text("equation").replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = _implicit_output(inputs)
    words = set(inputs) - set(",.")
    if _broadcasts(site, terms):
        raise Opaque("an axis of size one meets a longer one of the same letter")
    spaced = ", ".join(map(_spaced, terms))
    return Coupling(f"{spaced} -> {_spaced(output)}", sums=sorted(words - set(output)))


def _implicit_output(inputs: str) -> str:
    """Return the output of an equation without an arrow: the letters that stand once, in alphabetical order."""
    letters = sorted(letter for letter in set(inputs) - set(",.") if inputs.count(letter) == 1)
    return ("..." if "..." in inputs else "") + "".join(letters)


def _spaced(term: str) -> str:
    return " ".join("..." if part == "." else part for part in term.replace("...", "."))


def _broadcasts(site: Site, terms: list[str]) -> bool:
    """Say whether a letter stands for axes of different sizes."""
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        if "." not in term:
            for letter, axis in zip(term, site.axes(index), strict=False):
                if sizes.setdefault(letter, axis.size) != axis.size:
                    return True
    return False
