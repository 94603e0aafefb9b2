"""Operators along one axis whose order they use or find: sorting, running sums, choosing, writing by place."""

from __future__ import annotations

from bevel.ir.coupling import Coupling, rule
from bevel.ir.rules.fixed import MICROSOFT, positions
from bevel.ir.site import POSITIONS, Axes, Opaque, Site


@rule("TopK")
def top_k(site: Site) -> None:
    """Sort one axis, and keep its first entries; ties go to the first."""
    axes = _with_positions(site, site.axes(0), site.integer("axis", -1))
    site.set(0, axes)
    site.set(1, axes)


def _with_positions(site: Site, axes: Axes, axis: int) -> Axes:
    """Fix one axis, and put one of the output's own in its place."""
    place = site.position(axis, len(axes))
    site.fix(axes[place], POSITIONS)
    return (*axes[:place], positions(site, place), *axes[place + 1 :])


@rule("CumSum", "CumProd")
def running(site: Site) -> None:
    """Add up, or multiply, along one axis."""
    axes = site.axes(0)
    site.fix(axes[site.position(site.required_integers(1)[0], len(axes))], POSITIONS)
    site.set(0, axes)


@rule("Compress")
def compress(site: Site) -> None:
    """Keep the entries of one axis that a condition tells; without an axis, of the flattened input."""
    if "axis" not in site.node.attributes:
        raise Opaque("it flattens its input")
    site.fix(site.axes(1), POSITIONS)
    site.set(0, _with_positions(site, site.axes(0), site.integer("axis")))


@rule("ReverseSequence")
def reverse_sequence(site: Site) -> None:
    """Reverse the first steps of each sample."""
    axes = site.axes(0)
    batch = axes[site.position(site.integer("batch_axis", 1), len(axes))]
    site.fix(axes[site.position(site.integer("time_axis"), len(axes))], POSITIONS)
    site.equate_all((batch,), site.axes(1))
    site.set(0, axes)


@rule("Trilu")
@rule("Trilu", domain=MICROSOFT)
def triangle(site: Site) -> None:
    """Zero one side of a diagonal: rows and columns are places."""
    axes = site.axes(0)
    site.fix(axes[-2:], POSITIONS)
    site.set(0, axes)


@rule("TensorScatter")
def tensor_scatter(site: Site) -> None:
    """Write steps into a cache, from a place for each sample on."""
    cache, update = site.axes(0), site.axes(1)
    place = site.position(site.integer("axis", -2), len(cache))
    site.fix((cache[place], update[place]), POSITIONS)
    site.equate_all((*cache[:place], *cache[place + 1 :]), (*update[:place], *update[place + 1 :]))
    if site.has(2):
        site.equate_all(cache[:1], site.axes(2))
    site.set(0, cache)


@rule("NonZero")
def non_zero(site: Site) -> Coupling:
    """List the places of entries."""
    return Coupling("? -> ?")


@rule("NonMaxSuppression")
def non_max_suppression(site: Site) -> Coupling:
    """List the places of the best boxes of each sample and class."""
    return Coupling("?, ?, ., ., . -> ?")


@rule("Unique")
@rule("Unique", domain=MICROSOFT)
def unique(site: Site) -> Coupling:
    """List distinct entries, or slices, in order."""
    return Coupling("? -> ?, ?, ?, ?")
