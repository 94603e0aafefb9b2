"""What scores that need gradients share: inputs cut to small batches, and weights times their gradients by entry."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bevel.errors import CalibrationError
from bevel.ir.groups import Analysis, Group
from bevel.ir.signature import signature
from bevel.passes.base import Context, Slope, silent
from bevel.passes.calibration import Feed
from bevel.passes.importance.weights import Read, gathered

BATCH = 32


def batches(model: ir.Model, context: Context, rows: int = BATCH) -> list[Feed]:
    """Return about as many samples as the context asks for, in feeds of at most `rows` where any number fits.

    Raises `CalibrationError` where there are none.
    """
    feeds = context.calibration.samples(context.samples)
    found = list(_cut(feeds, rows if _is_batched(model) else 0, context.samples))
    if not found:
        raise CalibrationError("there is no input to take gradients at", where=context.calibration.source)
    return found


def _cut(feeds: Iterator[Feed], rows: int, most: int) -> Iterator[Feed]:
    for feed in feeds:
        if not rows or not feed:
            yield feed
            continue
        length = min(len(array) for array in feed.values())
        for start in range(0, min(length, most), rows):
            yield {name: array[start : start + rows] for name, array in feed.items()}


def _is_batched(model: ir.Model) -> bool:
    """Say whether all inputs have one first axis, of any size."""
    first = {None if wanted.sequence or not wanted.shape else wanted.shape[0] for wanted in signature(model)}
    return len(first) == 1 and isinstance(first.pop(), str)


def slope(analysis: Analysis, context: Context, kind: Slope, most: int | None = None) -> Mapping[str, np.ndarray]:
    """Return the gradient of a kind that there is one of, over at most so many batches, by initializer name."""
    model = analysis.model
    (found,) = context.runtime.gradients(model, batches(model, context)[:most], kind, context.seed)
    return found


def products(
    analysis: Analysis,
    groups: Sequence[Group],
    context: Context,
    gradients: Mapping[str, np.ndarray],
    join: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """Return parts [tensors, size] of weights times gradients, which `join` adds up to one number a place.

    A tensor that is not learnt counts nothing; groups that have no other are left out.
    """

    def reduce(weight: Read) -> np.ndarray:
        found = gradients.get(weight.value.name or "")
        if found is None:
            return np.zeros(weight.axis.size)
        return join(weight.array, found.reshape(weight.array.shape))

    learnt = [group for group in groups if any(member.value.name in gradients for member in group.members)]
    return gathered(analysis, learnt, replace(context, progress=silent), reduce)


def signed(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Add products with their signs: the first-order change of the loss where all weights of a place go."""
    total: np.ndarray = np.einsum("anb,anb->n", weights, gradients)
    return total


def absolute(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Add the sizes of products: what each weight does by itself."""
    total: np.ndarray = np.abs(weights * gradients).sum((0, 2))
    return total
