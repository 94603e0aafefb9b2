"""How large the entries of a group are: what orders go by, beside installed importances."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from bevel.ir.groups import Analysis
from bevel.passes.base import Context
from bevel.passes.reordering.rows import norms
from bevel.passes.reordering.targets import Target
from bevel.passes.reordering.vectors import Measure, Vectors, watch

Array = np.ndarray[Any, Any]
Size: TypeAlias = Literal["key-norm", "absmax", "absmean", "rms"]

MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)
SMALLEST: Final = 1e-30  # a group whose sizes are all zero is divided by this


def sizes(by: Size, analysis: Analysis, targets: Sequence[Target], context: Context) -> Mapping[Target, Array]:
    """Return the size of every entry of targets, `[heads, size]`: of weights, or of activations on the samples.

    Targets of which no activation is read are sized by their weights.
    """
    if by == "key-norm":
        return norms(analysis, targets, context)
    seen = {target: measured(found, by) for target, found in watch(analysis, targets, context).items() if found}
    return norms(analysis, [target for target in targets if target not in seen], context) | seen


def measured(found: Sequence[Vectors], measure: Measure) -> Array:
    """Return the size of entries over all activations that hold them, each divided by its mean."""
    total: Array = np.sum([relative(vectors.sizes(measure)) for vectors in found], axis=0)
    return total


def relative(numbers: Array) -> Array:
    """Divide sizes by their mean.

    >>> relative(np.array([1.0, 3.0]))
    array([0.5, 1.5])
    """
    return numbers / max(float(numbers.mean()), SMALLEST)
