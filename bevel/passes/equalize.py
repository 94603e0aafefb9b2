"""Make the ranges of a weight's channels the same as those of the weights that follow."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir

from bevel.ir.groups import analyse
from bevel.passes.base import Context, Doc, Outcome, Pass, Preserving, Promise, Range
from bevel.passes.scaling.balance import Balance, balanced
from bevel.passes.scaling.factors import powers_of_two

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Equalize(Pass):
    """Make the ranges of a weight's channels the same as those of the weights that follow (cross-layer equalization).

    What it does: multiplies each channel of a layer by `sqrt(r2 / r1)` and divides what reads it by the same, where
    `r1` and `r2` are the largest magnitudes of its weights before and after, so that both have one range; then again
    for all chains until nothing moves any more. One scale for a whole weight then wastes no range on the largest
    channel. It goes through ReLU and everything linear, depthwise convolutions and BatchNormalization (folded or not)
    included, and looks at no data.

    Promise: Preserving; with `exact=true` scales are powers of two, which round nothing, and ranges are the same up to
    a factor of two.

    Example: fold,equalize

    Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction.
    """

    name: ClassVar[str] = "equalize"
    promise: ClassVar[Promise] = Preserving()

    rounds: Annotated[int, Range(1), Doc("how often to go through all chains at most")] = 40
    exact: Annotated[bool, Doc("take the nearest powers of two")] = False
    only: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to scale; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to leave alone")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Balance all chains, then scale."""
        analysis = analyse(model)
        chains = balanced(analysis, self.only, self.skip)
        balance = Balance(analysis, chains)
        before = balance.precision()
        rounds = balance.settle(self.rounds)
        for chain, factor in balance.factors.items():
            chain.direction.carry_out(analysis, powers_of_two(factor) if self.exact else factor)
        return Outcome(notes=tuple(balance.notes(before, rounds)))
