"""Score by the statistics of the parameters that make an entry: no data, and no look at the layers that read it."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from bevel.ir.action import Term
from bevel.ir.axes import product
from bevel.ir.content import content
from bevel.ir.groups import Analysis, Group, Member
from bevel.ir.site import Site
from bevel.ir.symmetry import action_of
from bevel.passes.base import Context
from bevel.passes.importance import importance
from bevel.passes.importance.weights import is_float, lifted, read

SLICE = 16  # channels that `iscs_slices` takes together
SMALLEST = 1e-30  # what a group without any spread is divided by


@importance(aggregate="sum", normalize="std")
def iscs(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by `z(Var(W)) + z(|b|)`, of the filters that make it and of what is added to it.

    `z` standardises within the group; where several layers or biases make an entry, their mean counts. Groups that no
    filter makes are left out. The formula is ours: the paper names the statistics, but what we could read of it does
    not say how they are joined. Source: ISCS, Parameter-Guided Channel Ordering and Grouping for Learned Image
    Compression, 2025.
    """
    spreads: dict[str, list[np.ndarray]] = {}
    for group, filters in _makers(analysis, groups, context):
        spreads.setdefault(group.name, []).append(filters.var(1, dtype=np.float64))
    found = {}
    for group in groups:
        if group.name in spreads:
            kinds = [spreads[group.name], _added(analysis, group)]
            found[group.name] = np.stack([np.mean([standard(part) for part in kind], 0) for kind in kinds if kind])
    return found


@importance(normalize="mean")
def iscs_slices(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by its place in an order of slices, each filled with filters that correlate least.

    A slice starts with the entry left that `iscs` scores best, and takes the 15 whose filters correlate least with it:
    so what is kept is diverse. The scores count places from the end of the order, the same in every group. A variant of
    our own of the paper's grouping; see `iscs`.
    """
    scores = {name: parts.sum(0) for name, parts in iscs(analysis, groups, context).items()}
    alike: dict[str, np.ndarray] = {}
    for group, filters in _makers(analysis, groups, context):
        centred = filters - filters.mean(1, keepdims=True)
        alike[group.name] = alike.get(group.name, 0) + centred @ centred.T
    return {name: places_from_end(score, _correlations(alike[name])) for name, score in scores.items()}


def standard(numbers: np.ndarray) -> np.ndarray:
    """Shift and scale numbers to a mean of zero and a deviation of one.

    >>> standard(np.array([1.0, 3.0]))
    array([-1.,  1.])
    """
    standardised: np.ndarray = (numbers - numbers.mean()) / max(float(numbers.std()), SMALLEST)
    return standardised


def places_from_end(scores: np.ndarray, alike: np.ndarray, width: int = SLICE) -> np.ndarray:
    """Count each entry's place, from the end, in an order of slices of `width`.

    >>> alike = np.array([[1, 0.9, 0.1, 0], [0.9, 1, 0, 0], [0.1, 0, 1, 0], [0, 0, 0, 1]])
    >>> places_from_end(np.array([4.0, 3.0, 2.0, 1.0]), alike, width=2)
    array([4., 2., 1., 3.])
    """
    left = np.argsort(-scores, kind="stable")
    order: list[int] = []
    while len(left):
        seed, others = left[0], left[1:]
        taken = np.argsort(alike[seed, others], kind="stable")[: width - 1]
        order.extend((seed, *others[taken]))
        left = np.delete(others, taken)
    found = np.empty(len(scores))
    found[order] = np.arange(len(scores), 0, -1)
    return found


def _makers(analysis: Analysis, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, np.ndarray]]:
    """Yield the filters [size, weights] that make each group: the weights that nothing sums over along it."""
    readers = {(place.node.inputs[place.input], place.position) for place in analysis.facts.sums}
    for weight in read(analysis, groups, context):
        if (weight.value, weight.position) not in readers and weight.array.size > weight.axis.size:
            for group in weight.owners:
                yield group, weight.filters(group)


def _correlations(products: np.ndarray) -> np.ndarray:
    """Make absolute correlations of the products of centred filters."""
    sizes = np.sqrt(np.maximum(np.diagonal(products), SMALLEST))
    correlations: np.ndarray = np.abs(products) / sizes[:, None] / sizes[None, :]
    return correlations


def _added(analysis: Analysis, group: Group) -> list[np.ndarray]:
    """Return the sizes of all that is added to a group's entries: biases, shifts of normalisations."""
    found = []
    vectors = dict.fromkeys(member.value for member in group.members if _is_added(analysis, member))
    for value in vectors:
        axes = analysis.axes(value)
        assert axes is not None and value.const_value is not None
        with content(value.const_value) as array:
            sizes = np.abs(array.astype(np.float64)).ravel()
        found.append(lifted(sizes, product(*axes), group.dim))
    return found


def _is_added(analysis: Analysis, member: Member) -> bool:
    """Say whether a group's member is a vector that some node adds."""
    value = member.value
    axes = analysis.axes(value)
    if not is_float(value) or axes is None or prod(axis.size for axis in axes) != axes[member.axis].size:
        return False
    return any(_adds(analysis, node, index) for node, index in value.uses())


def _adds(analysis: Analysis, node: ir.Node, index: int) -> bool:
    """Say whether a node adds an input by itself: the last of its terms, or any if each is a term."""
    action = action_of(Site(node, analysis.facts, analysis.model.opset_imports.get(node.domain, 1)))
    terms = action.terms_of([place for place, value in enumerate(node.inputs) if value is not None])
    each = action.terms == "each" and not action.moves and not action.positive  # no Concat and no Max
    return Term((index,)) in (terms if each else terms[-1:])
