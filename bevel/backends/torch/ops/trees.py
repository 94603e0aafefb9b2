"""Ensembles of trees: all samples walk down all trees together, one level a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bevel.backends.torch.ops.classical import DOMAIN, transformed
from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel

AVERAGE, SUM, MIN, MAX = range(4)
MEMBER: Final = 6  # the mode that asks whether a feature is one of a set; those before it compare with a split
TRANSFORMS: Final = {0: "NONE", 1: "SOFTMAX", 2: "LOGISTIC"}


@dataclass(frozen=True)
class Members:
    """The members of all sets one after the other, the set of each, and the set of each node."""

    values: Tensor
    sets: Tensor
    nodes: Tensor


def _unknown_transform(attributes: Mapping[str, Any]) -> str:
    number = attributes.get("post_transform", 0)
    return "" if number in TRANSFORMS else f"it transforms its scores by {number}"


@lower("TreeEnsemble", domain=DOMAIN, refuses=_unknown_transform)
def tree_ensemble(
    x: Tensor,
    *,
    aggregate_function: int = SUM,
    leaf_targetids: Sequence[int],
    leaf_weights: Tensor,
    membership_values: Tensor | None = None,
    n_targets: int = 1,
    nodes_falseleafs: Sequence[int],
    nodes_falsenodeids: Sequence[int],
    nodes_featureids: Sequence[int],
    nodes_hitrates: Tensor | None = None,
    nodes_missing_value_tracks_true: Sequence[int] = (),
    nodes_modes: Tensor,
    nodes_splits: Tensor,
    nodes_trueleafs: Sequence[int],
    nodes_truenodeids: Sequence[int],
    post_transform: int = 0,
    tree_roots: Sequence[int],
) -> Tensor:
    """Sum up the weights of the leaves that a sample arrives at, or take their mean, least or greatest.

    Leaves are numbered after the nodes, and both ways on from a leaf lead to itself.
    """
    count = len(nodes_featureids)
    yes = _targets(nodes_truenodeids, nodes_trueleafs)
    no = _targets(nodes_falsenodeids, nodes_falseleafs)
    on = torch.tensor([no, yes], device=x.device)
    features = torch.tensor(nodes_featureids, device=x.device)
    tracked = torch.tensor(nodes_missing_value_tracks_true or [0] * count, device=x.device).bool()
    members = None if membership_values is None else _members(membership_values, nodes_modes)
    at = torch.tensor(tree_roots, device=x.device).expand(x.shape[0], -1)
    for _ in range(_depth(yes, no, tree_roots)):
        node = at.clamp(max=count - 1)
        feature = x.gather(1, features[node])
        decided = _decide(feature, nodes_splits[node], nodes_modes[node].long(), node, members)
        decided = decided | (feature.isnan() & tracked[node])
        at = torch.where(at < count, on[decided.long(), node], at)
    weights, targets = leaf_weights[at - count], torch.tensor(leaf_targetids, device=x.device)[at - count]
    return transformed(
        _aggregated(weights.to(x.dtype), targets, n_targets, aggregate_function), TRANSFORMS[post_transform]
    )


def _targets(nodes: Sequence[int], leaves: Sequence[int]) -> list[int]:
    count = len(nodes)
    return [place + count if leaf else place for place, leaf in zip(nodes, leaves, strict=True)]


def _depth(yes: Sequence[int], no: Sequence[int], roots: Sequence[int]) -> int:
    """Count the steps to the last leaf."""
    count, level, depth = len(yes), set(roots), 0
    while level:
        if depth > count:
            raise UnsupportedModel("the nodes of a tree go round in a circle", where="TreeEnsemble")
        level = {place for node in level for place in (yes[node], no[node]) if place < count}
        depth += 1
    return depth


def _decide(x: Tensor, split: Tensor, mode: Tensor, node: Tensor, members: Members | None) -> Tensor:
    """Say which samples take the true way, by the mode of the node that each is at."""
    answers = [x <= split, x < split, x >= split, x > split, x == split, x != split]
    if members is None:
        answers.append(torch.zeros_like(answers[0]))
    else:
        same = (x.unsqueeze(-1) == members.values) & (members.nodes[node].unsqueeze(-1) == members.sets)
        answers.append(same.any(-1))
    return torch.stack(answers, -1).gather(-1, mode.unsqueeze(-1)).squeeze(-1)


def _members(values: Tensor, modes: Tensor) -> Members:
    """Read sets that end with not-a-number each, in the order of the nodes that ask for them."""
    return Members(values, values.isnan().cumsum(0), (modes == MEMBER).cumsum(0) - 1)


def _aggregated(weights: Tensor, targets: Tensor, count: int, function: int) -> Tensor:
    shape = (weights.shape[0], count)
    if function in (SUM, AVERAGE):
        total = weights.new_zeros(shape).scatter_add(1, targets, weights)
        return total / weights.shape[1] if function == AVERAGE else total
    limits = torch.finfo(weights.dtype)
    start = weights.new_full(shape, limits.max if function == MIN else limits.min)
    return start.scatter_reduce(1, targets, weights, "amin" if function == MIN else "amax")
