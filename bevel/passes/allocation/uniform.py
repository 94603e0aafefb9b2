"""The same share from every group."""

from bevel.passes.allocation.problem import Allocate, Problem, Widths


def uniform(problem: Problem) -> Allocate:
    """Remove the same share of every group."""

    def allocate(strength: float) -> Widths:
        sizes = problem.sizes
        return problem.widths({name: sizes[name] - int(sizes[name] * strength) for name in problem.ladders})

    return allocate
