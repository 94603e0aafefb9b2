"""Experts put into the order of another one, by their weights or by what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from bevel.passes.base import Runtime
from bevel.passes.mixtures.alignment import order, order_by_activations
from bevel.passes.mixtures.description import Expert, Mixture, hidden

Array = np.ndarray[Any, Any]
Alignment: TypeAlias = Literal["auto", "none", "weights", "activations"]


def matched(
    mixture: Mixture, experts: Sequence[Expert], like: int, rows: Array, by: Alignment, runtime: Runtime
) -> list[Expert]:
    """Return experts with their hidden entries in the order in which they are most like one of them."""
    if by == "none":
        return list(experts)
    if by == "activations":
        found = hidden(experts, mixture.activation, rows, runtime)
        orders = [order_by_activations(each, found[like]) for each in found]
    else:
        orders = [order(expert, experts[like]) for expert in experts]
    return [
        expert if place == like else expert.ordered(each)
        for place, (expert, each) in enumerate(zip(experts, orders, strict=True))
    ]
