"""Operators that make tensors: constants, ranges, windows, random numbers, one-hot codes."""

from __future__ import annotations

from bevel.ir.axes import fresh
from bevel.ir.coupling import Coupling, rule
from bevel.ir.resize import operand_sizes
from bevel.ir.rules.fixed import MICROSOFT, positions
from bevel.ir.site import POSITIONS, Site

_DRAWN = "its entries are drawn in order"


@rule("RandomNormal", "RandomUniform", "Constant")
def made_in_order(site: Site) -> Coupling:
    """Make entries one after the other."""
    return Coupling("-> ?")


@rule("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def random_like(site: Site) -> None:
    """Draw one entry for each of the input's."""
    site.fix(site.axes(0), _DRAWN)
    site.set(0, site.axes(0))


@rule("EyeLike")
def eye_like(site: Site) -> None:
    """Put ones on a diagonal: rows and columns are places."""
    site.fix(site.axes(0), POSITIONS)
    site.set(0, site.axes(0))


@rule("Multinomial")
def multinomial(site: Site) -> Coupling:
    """Draw classes for one sample after the other."""
    return Coupling("? -> ?")


@rule("Range", "MelWeightMatrix")
@rule("Range", domain=MICROSOFT)
def computed_places(site: Site) -> Coupling:
    """Compute each entry from its place."""
    return Coupling("., ., ., ., . -> ?")


@rule("HannWindow", "HammingWindow", "BlackmanWindow")
def window(site: Site) -> Coupling:
    """Compute the weight of each position."""
    return Coupling(". -> ?")


@rule("ConstantOfShape")
def constant_of_shape(site: Site) -> None:
    """Repeat one value: any order is the same, and the operand follows."""
    axes = [fresh(size) for size in site.required_integers(0)]
    site.set(0, axes)
    site.states(operand_sizes(site.node, 0, axes))


@rule("OneHot")
def one_hot(site: Site) -> None:
    """Give each index an axis of classes, which are addressed by value."""
    axes = list(site.axes(0))
    site.fix((*site.axes(1), *site.axes(2)), "it tells how many classes there are, or what on and off are")
    place = site.position(site.integer("axis", -1), len(axes) + 1)
    axes.insert(place, positions(site, place, "its classes are addressed by value"))
    site.set(0, axes)
