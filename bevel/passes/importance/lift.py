"""Make one score for each entry of a group out of what an importance says about the group's parts.

>>> parts = np.array([[3.0, 1.0], [4.0, 1.0]])
>>> aggregated(parts, "norm")
array([5.        , 1.41421356])
>>> normalized(aggregated(parts, "sum"), "max")
array([1.        , 0.28571429])
"""

from collections.abc import Callable, Sequence

import numpy as np

from bevel import registry
from bevel.errors import UsageError
from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.importance import Aggregate, Normalize, Scores, declared
from bevel.passes.importance.magnitude import magnitude

SMALLEST = 1e-30  # a group whose scores are all zero is divided by this

_AGGREGATES: dict[Aggregate, Callable[[np.ndarray], np.ndarray]] = {
    "sum": lambda parts: parts.sum(0),
    "mean": lambda parts: parts.mean(0),
    "max": lambda parts: parts.max(0),
    # Ordered as the product is, without its overflow over hundreds of tensors.
    "prod": lambda parts: np.exp(np.log(np.maximum(parts, SMALLEST)).mean(0)),
    "norm": lambda parts: np.sqrt(np.square(parts).sum(0)),
}
_SCALES: dict[Normalize, Callable[[np.ndarray], float]] = {
    "mean": lambda sizes: float(sizes.mean()),
    "sum": lambda sizes: float(sizes.sum()),
    "max": lambda sizes: float(sizes.max()),
    "none": lambda sizes: 1.0,
}


class Scored(dict[str, np.ndarray]):
    """Scores [size] by the group's name, and what the report should say about them."""

    notes: tuple[str, ...] = ()


def score(
    name: str | Scores,
    analysis: Analysis,
    groups: Sequence[Group],
    context: Context,
    aggregate: Aggregate | None = None,
    normalize: Normalize | None = None,
) -> Scored:
    """Return a score [size] for the entries of each group, by the group's name; larger is more important.

    `name` is an installed importance or a function. Without `aggregate` and `normalize`, the importance's own are used.
    Groups that it leaves out are scored by `magnitude`, and groups of weights that are not finite (masks are) are in no
    order and have no score; the notes say so. Raises `UsageError` where an importance gives no finite numbers of the
    right shape.
    """
    found = registry.importances()[name] if isinstance(name, str) else name
    chosen = declared(found)
    label = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
    with np.errstate(invalid="ignore"):
        parts = chosen(analysis, groups, context)
        left = [group for group in groups if group.name not in parts]
        fallback = magnitude(analysis, left, context) if left else {}
    scored, endless = Scored(), []
    how = normalize or chosen.normalize
    for group in groups:
        source, given = (chosen, parts) if group.name in parts else (magnitude, fallback)
        if _holds_infinities(given[group.name], group):
            endless.append(group)
            continue
        joined = aggregated(_checked(given[group.name], group, label), aggregate or source.aggregate)
        scored[group.name] = normalized(joined, how)
    others = [group for group in left if group.name in scored]
    if how == "none" and 0 < len(others) < len(scored):
        _adapt(scored, [group.name for group in others])
    if others:
        scored.notes += (f"{label} says nothing about {_named(others)}: scored by magnitude instead",)
    if endless:
        scored.notes += (f"left alone: {_named(endless)}: weights that are not finite have no order",)
    return scored


def _adapt(scored: Scored, others: Sequence[str]) -> None:
    """Give the groups that another importance has scored the mean of the rest, for neither knows the other's unit."""
    level = float(np.mean(np.concatenate([scores for name, scores in scored.items() if name not in others])))
    for name in others:
        scored[name] = normalized(scored[name], "mean") * level


def aggregated(parts: np.ndarray, how: Aggregate) -> np.ndarray:
    """Join parts [parts, size] to [size]; `prod` is their geometric mean, `norm` the root of the sum of squares."""
    return _AGGREGATES[how](parts) if len(parts) else np.zeros(parts.shape[1])


def normalized(scores: np.ndarray, how: Normalize) -> np.ndarray:
    """Make the scores of different groups comparable: divide by their mean, sum or largest, or (`std`) standardise."""
    if how == "std":
        standard: np.ndarray = (scores - scores.mean()) / max(float(scores.std()), SMALLEST)
        return standard
    return scores / max(_SCALES[how](np.abs(scores)), SMALLEST)


def _named(groups: Sequence[Group]) -> str:
    return groups[0].name + (f" and {len(groups) - 1} more groups" if len(groups) > 1 else "")


def _holds_infinities(parts: np.ndarray, group: Group) -> bool:
    """Say if scores are no numbers because the weights are none."""
    if np.isfinite(np.asarray(parts, np.float64)).all():
        return False
    contents = (member.value.const_value for member in group.members)
    return any(not np.isfinite(weight.numpy()).all() for weight in contents if weight is not None)


def _checked(parts: np.ndarray, group: Group, where: str) -> np.ndarray:
    """Return what an importance says about a group as [parts, size]."""
    array = np.asarray(parts, np.float64)
    problem = ""
    if array.ndim not in (1, 2) or array.shape[-1] != group.size:
        problem = f"scores of shape {list(array.shape)} for {group.size} entries"
    elif not np.isfinite(array).all():
        problem = "scores that are no finite numbers"
    if problem:
        raise UsageError(
            f"{problem}: group {group.name!r}",
            where=f"importance {where!r}",
            remedy="leave the group out (`skip`), or choose another importance",
        )
    return np.atleast_2d(array)
