"""How many entries each group keeps: one file a family of allocations, each from arrays to widths."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from bevel.passes.allocation.angular import angular
from bevel.passes.allocation.problem import Allocate, Allocation, Problem, Widths
from bevel.passes.allocation.programming import milp
from bevel.passes.allocation.slope import slope
from bevel.passes.allocation.threshold import globally, isomorphic
from bevel.passes.allocation.uniform import uniform

__all__ = ["ALLOCATIONS", "Allocate", "Allocation", "Named", "Problem", "Widths"]

Named: TypeAlias = Literal["uniform", "global", "isomorphic", "angular", "slope", "milp"]

ALLOCATIONS: Mapping[Named, Allocation] = {
    "uniform": uniform,
    "global": globally,
    "isomorphic": isomorphic,
    "angular": angular,
    "slope": slope,
    "milp": milp,
}
