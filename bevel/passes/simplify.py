"""Remove what a graph does not need: identities, repeated computations, dead nodes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from bevel.ir.canonical.dead import remove_dead
from bevel.passes.base import Context, Doc, Outcome, Pass, Preserving, Promise
from bevel.passes.redundancy import merge_repeated, remove_identities


@dataclass(frozen=True)
class Simplify(Pass):
    """Remove identities, repeated computations and dead nodes.

    What it does: takes Identity nodes out, computes once what is computed twice with the same operands, removes what no
    output needs. Weights are not touched, so tied ones stay tied; node metadata and names of what remains are kept.
    With `onnxsim`, that tool runs too; its result is dropped, with a note, where it loses something.

    Promise: Preserving.

    Example: simplify{onnxsim=true}

    Source: onnx_ir's common passes; onnxsim.
    """

    name: ClassVar[str] = "simplify"
    promise: ClassVar[Promise] = Preserving()
    onnxsim: Annotated[bool, Doc("also run onnxsim; its result is dropped where it loses names, metadata or ties")] = (
        False
    )

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Run the clean-up in an order in which each step leaves a valid model to the next."""
        before = _nodes(model)
        notes = _onnxsim_notes(model) if self.onnxsim else ()
        remove_identities(model.graph)
        merge_repeated(model.graph, model.opset_imports.get("", 1))
        remove_dead(model)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return Outcome(notes=(*notes, f"{before - _nodes(model)} of {before} nodes removed"))


def _onnxsim_notes(model: ir.Model) -> tuple[str, ...]:
    from bevel.passes.onnxsim import run_onnxsim  # here, for onnxsim imports torch where that is installed: seconds

    return run_onnxsim(model)


def _nodes(model: ir.Model) -> int:
    return sum(1 for graph in model.graphs() for _ in graph)
