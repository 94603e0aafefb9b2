"""Operators that reduce axes to one entry."""

from __future__ import annotations

from bevel.ir.action import HOMOGENEOUS, LINEAR
from bevel.ir.axes import ONE
from bevel.ir.coupling import Freedom, rule
from bevel.ir.site import Axes, Site

# Entries that are zero add nothing to these.
_SUMS = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum"})


@rule("ReduceMean", "ReduceSum", acts=LINEAR)
@rule("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", acts=HOMOGENEOUS)
@rule("ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")
def reduce(site: Site) -> None:
    """Reduce the listed axes, or all of them; any order of the entries is the same."""
    axes = site.axes(0)
    places = _reduced(site, len(axes))
    for place in sorted(places):
        if site.node.op_type in _SUMS:
            site.sums_over(axes[place], 0, place)
        else:
            site.keep(axes[place], Freedom.PERMUTE, "it is reduced by other means than a sum")
    site.set(0, _kept(site, axes, places))


def _reduced(site: Site, rank: int) -> set[int]:
    listed = site.required_integers(1) if site.has(1) else site.integer_list("axes")
    if not listed:
        return set() if site.integer("noop_with_empty_axes") else set(range(rank))
    return {site.position(place, rank) for place in listed}


def _kept(site: Site, axes: Axes, places: set[int]) -> Axes:
    if site.integer("keepdims", 1):
        return tuple(ONE if place in places else axis for place, axis in enumerate(axes))
    return tuple(axis for place, axis in enumerate(axes) if place not in places)


@rule("ArgMax", "ArgMin")
def arg_reduce(site: Site) -> None:
    """Return the place of an extreme entry: the order of the axis is the result."""
    axes = site.axes(0)
    place = site.position(site.integer("axis"), len(axes))
    site.fix(axes[place], "the places of its entries are the result")
    site.set(0, _kept(site, axes, {place}))
