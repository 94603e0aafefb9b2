"""One threshold on scores: what lies below it goes, wherever it is."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from bevel.ir.groups import Group
from bevel.passes.allocation.problem import Allocate, Problem, Widths

LEAST = 0.5
"""Of what a group would keep if all lost alike: so much it keeps at least. Errors of layers add up only roughly, and
scores of entries of different kinds say little of each other: without it a group of many small entries is emptied."""

ROUNDING = 1e-9
"""Of a sum of weights, relative."""


def globally(problem: Problem) -> Allocate:
    """Put one threshold to all groups. Source: Fang et al. 2023, DepGraph."""
    return lambda strength: problem.widths(above(problem.scores, problem.left(strength)))


def isomorphic(problem: Problem) -> Allocate:
    """Put one threshold to all groups of a kind: heads are compared with heads only, streams with streams.

    Source: Fang et al. 2024, Isomorphic Pruning for Vision Models.
    """
    kinds = by_kind(problem.groups)

    def allocate(strength: float) -> Widths:
        share = problem.left(strength)
        wanted: dict[str, float] = {}
        for groups in kinds.values():
            wanted |= above({group.name: problem.scores[group.name] for group in groups}, share)
        return problem.widths(wanted)

    return allocate


def above(scores: Mapping[str, np.ndarray], share: float) -> dict[str, float]:
    """Count the entries of each group that are left when the lowest go, a share of each group in the mean.

    Groups weigh alike, however many entries they have: one head of four is as much as a quarter of the hidden units.

    >>> above({"a": np.array([1.0, 2.0, 3.0]), "b": np.array([0.1, 0.2, 4.0])}, 0.5)
    {'a': 2, 'b': 1}
    """
    if not scores:
        return {}
    every = np.concatenate(list(scores.values()))
    order = np.argsort(every, kind="stable")
    weights = np.concatenate([np.full(len(values), 1 / len(values)) for values in scores.values()])
    gone = int((np.cumsum(weights[order]) <= share * len(scores) * (1 + ROUNDING)).sum())
    threshold = every[order[gone]] if gone < len(every) else np.inf
    least = LEAST * (1 - share)
    return {name: max(int((values >= threshold).sum()), int(least * len(values))) for name, values in scores.items()}


def by_kind(groups: Sequence[Group]) -> dict[Hashable, list[Group]]:
    """Put groups together whose tensors stand at the same inputs of the same operators, as often."""
    kinds: dict[Hashable, list[Group]] = {}
    for group in groups:
        kinds.setdefault(kind(group), []).append(group)
    return kinds


def kind(group: Group) -> Hashable:
    """Return what isomorphic groups have in common: how often which operator takes their dimension where."""
    uses = Counter(
        (node.domain, node.op_type, place, member.axis, len(member.path))
        for member in group.members
        for node, place in member.value.uses()
    )
    return frozenset(uses.items())
