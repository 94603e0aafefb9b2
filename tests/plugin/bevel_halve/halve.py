"""Halve weights by name."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import onnx_ir as ir

from bevel.passes.base import Context, Doc, Lossy, Outcome, Pass, Promise, Range


@dataclass(frozen=True)
class HalveWeights(Pass):
    """Halve the weights named.

    What it does: divides the initializers named by two, as often as asked.

    Promise: Lossy.

    Example: halve-weights{only=w1 times=2}
    """

    name: ClassVar[str] = "halve-weights"
    promise: ClassVar[Promise] = Lossy()
    only: Annotated[tuple[str, ...], Doc("the initializers to halve")] = ()
    times: Annotated[int, Range(1, 8), Doc("how often")] = 1

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Divide by a power of two, when the weight is read."""
        for name in self.only:
            value = model.graph.initializers[name]
            value.const_value = halved(value.const_value, 2**self.times)
        return Outcome(notes=(f"{len(self.only)} weights halved",))


def halved(tensor, divisor):
    """Return a tensor divided by a power of two."""
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy() / tensor.dtype.numpy().type(divisor)),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
    )
