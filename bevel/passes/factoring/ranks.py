"""Which rank each layer gets: a menu of ranks for every layer, and a choice from all of them."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from bevel.errors import BudgetMissed
from bevel.ir.cost import macs
from bevel.passes.allocation.menu import MOST_CHOICES, Menu
from bevel.passes.allocation.problem import Metric
from bevel.passes.allocation.programming import knapsack
from bevel.passes.allocation.slope import descent
from bevel.passes.factoring.factors import losses
from bevel.passes.fitting.layers import KERNELS, Layer

Array = np.ndarray[Any, Any]
By: TypeAlias = Literal["uniform", "slope", "milp"]

# What rounding may take off a sum that is just enough.
ENOUGH: Final = 1 - 1e-9


def most(layer: Layer) -> int:
    """Return the highest rank at which two layers are smaller than one; 0 if there is none."""
    return (_size(layer) - 1) // slope_of(layer)


def slope_of(layer: Layer) -> int:
    """Return how many weights a rank adds: a row and a column for each of the layer's matrices."""
    groups, out, inner = shape_of(layer)
    return groups * (out + inner)


def shape_of(layer: Layer) -> tuple[int, int, int]:
    """Return how many matrices a layer has, and their sizes."""
    sizes = layer.sizes
    inner = sizes[layer.in_axis] * layer.taps
    return layer.groups, _size(layer) // inner // layer.groups, inner


def _size(layer: Layer) -> int:
    return int(np.prod(layer.sizes))


def ranks(layer: Layer, block: int) -> Array:
    """Return the ranks that make a layer smaller, in steps that waste nothing, ascending.

    Convolutions take channels in blocks, so theirs are multiples of one, or halves of it, and so on down to 1. Of
    matrix products every column counts.
    """
    if layer.node.op_type not in KERNELS:
        return np.arange(1, most(layer) + 1)
    halves = [block >> shift for shift in range(block.bit_length() - 1, 0, -1)]
    found = np.array([*halves, *range(block, most(layer) + 1, block)], np.int64)
    return found[found <= most(layer)]


def menu(layer: Layer, energies: Array | None, metric: Metric, block: int) -> Menu:
    """Return what each rank saves, from the whole layer on down, and the share of the squared output that it loses."""
    steps = ranks(layer, block)[::-1]
    saved = _unit(layer, metric) * (_size(layer) - slope_of(layer) * steps)
    lost = np.zeros(len(steps)) if energies is None else losses(energies)[steps]
    return Menu(np.append(0, steps), np.append(0.0, saved), np.append(0.0, lost))


def _unit(layer: Layer, metric: Metric) -> float:
    """Return what a weight of a layer costs: every weight of a layer takes part in as many products."""
    if metric == "parameters":
        return 1.0
    if metric == "bytes":
        return layer.tensor.dtype.itemsize
    return (macs(layer.node) or 0) / _size(layer)


def choose(menus: Sequence[Menu], required: float, by: By, what: str) -> list[int]:
    """Return the rank of each layer such that what is required is saved; 0 where the layer stays whole.

    Raises `BudgetMissed` if even the lowest ranks save less.
    """
    least = float(sum(each.saved[-1] for each in menus))
    if required > least:
        raise BudgetMissed(
            f"cannot be reached: at the lowest ranks {least:,.0f} of {required:,.0f} is saved",
            where=f"low-rank {what}",
            remedy="ask for less, or leave fewer layers alone",
        )
    if required <= 0:
        return [0] * len(menus)
    choice = {"uniform": _uniform, "slope": _slope, "milp": _program}[by]
    return choice(menus, required)


def _uniform(menus: Sequence[Menu], required: float) -> list[int]:
    """Let every layer save the same share of itself, or the most that it can."""
    relative = [each.saved / max(each.saved[-1], 1e-30) for each in menus]
    shares = np.unique(np.concatenate(relative))

    def places(share: float) -> list[int]:
        return [int(np.searchsorted(saved, share)) for saved in relative]

    def total(share: float) -> float:
        return float(sum(each.saved[place] for each, place in zip(menus, places(share), strict=True)))

    first = bisect_left(shares, required * ENOUGH, key=total)
    return _at(menus, _filled(menus, places(float(shares[min(first, len(shares) - 1)])), required))


def _filled(menus: Sequence[Menu], places: list[int], required: float) -> list[int]:
    """Give layer after layer as much rank back as what is required permits: steps are not all alike."""
    spare = sum(each.saved[place] for each, place in zip(menus, places, strict=True)) - required * ENOUGH
    for layer, each in enumerate(menus):
        reached = int(np.searchsorted(each.saved, each.saved[places[layer]] - spare))
        spare -= each.saved[places[layer]] - each.saved[reached]
        places[layer] = reached
    return places


def _slope(menus: Sequence[Menu], required: float) -> list[int]:
    """Take the gentlest steps of all layers until enough is saved."""
    steps = sorted(step for place, each in enumerate(menus) for step in descent(f"{place}", each))
    reached = np.cumsum([step.saved for step in steps])
    taken = int(np.searchsorted(reached, required * ENOUGH)) + 1
    chosen = {int(step.group): step.width for step in steps[:taken]}
    places = [each.widths.tolist().index(chosen.get(place, 0)) for place, each in enumerate(menus)]
    return _at(menus, _filled(menus, places, required))


def _program(menus: Sequence[Menu], required: float) -> list[int]:
    """Solve for the least damage in sum."""
    short = [_thinned(each) for each in menus]
    return _at(short, knapsack(short, required))


def _thinned(full: Menu) -> Menu:
    places = np.unique(np.linspace(0, len(full.widths) - 1, MOST_CHOICES).round().astype(int))
    return Menu(full.widths[places], full.saved[places], full.damage[places])


def _at(menus: Sequence[Menu], places: Sequence[int]) -> list[int]:
    return [int(each.widths[place]) for each, place in zip(menus, places, strict=True)]
