"""A choice of experts in a graph of standard nodes, and what it leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from bevel.passes.mixtures.chains import Chain
from bevel.passes.mixtures.fused import is_mixture
from bevel.passes.mixtures.rows import LAST

CHOICE: Final = "TopK"
BEST: Final = "ArgMax"


@dataclass(frozen=True, eq=False)
class Region:
    """A choice and what it leads to: `chosen` are the numbers of experts, `others` what is read beside x and logits.

    `operator` is the node that has the experts, if one node has them all. Channels stand along `axis` of input and
    output. `shares` are single numbers between 0 and 1 that are read, one of which may be a threshold.
    """

    choice: ir.Node
    input: ir.Value
    logits: ir.Value
    output: ir.Value
    others: tuple[ir.Value, ...]
    chains: tuple[Chain, ...]
    experts: int
    operator: ir.Node | None = None
    axis: int = LAST
    shares: tuple[float, ...] = ()

    @property
    def form(self) -> str:
        """How the experts stand in the graph, in words."""
        if len(self.chains) > 1:
            return "layers of their own"
        return "parts of one layer" if self.is_masked else "stacked weights"

    @property
    def is_masked(self) -> bool:
        """Whether the experts are entries of one layer, and those not taken are multiplied by zero."""
        return len(self.chains) == 1 and not self.chains[0].weights and self.chains[0].gate is not None

    @property
    def chosen(self) -> ir.Value:
        """The numbers of the experts that rows take."""
        return self.choice.outputs[1]


def may_choose(node: ir.Node) -> bool:
    """Say whether a node may choose experts, by itself or as a whole mixture."""
    known = node.op_type in (CHOICE, BEST) and node.domain == "" and node.inputs[0] is not None
    return known or is_mixture(node)
