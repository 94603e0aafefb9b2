"""How many entries each group keeps: one file a family of allocations, each from arrays to widths."""

from collections.abc import Mapping

from bevel.passes.allocation.problem import Allocate, Allocation, Problem, Widths
from bevel.passes.allocation.programming import milp
from bevel.passes.allocation.slope import slope
from bevel.passes.allocation.threshold import globally, isomorphic
from bevel.passes.allocation.uniform import uniform

__all__ = ["ALLOCATIONS", "Allocate", "Allocation", "Problem", "Widths"]

ALLOCATIONS: Mapping[str, Allocation] = {
    "uniform": uniform,
    "global": globally,
    "isomorphic": isomorphic,
    "slope": slope,
    "milp": milp,
}
