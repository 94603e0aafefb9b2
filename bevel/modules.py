"""A user's own PyTorch module, edited as its graph was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bevel.backends.onnxruntime import Level, Session
from bevel.errors import UsageError
from bevel.interchange import backend
from bevel.ir.plan import Plan
from bevel.passes.synthesis import synthesize

if TYPE_CHECKING:
    from torch import nn

    from bevel.backends.torch.surgery import Surgery

# Made-up inputs that a module is verified on: two sizes of every symbolic axis.
FEEDS = 2


def apply(
    module: nn.Module,
    source: Plan | ir.Model,
    *,
    example_inputs: Any = None,
    verify: bool = True,
    seed: int = 0,
) -> Surgery:
    """Do to a module, in place, what passes did to its graph: the user's class, hooks and `state_dict` keep working.

    `source` is the optimized model, whose values the module gets, or a plan, by which its own values are taken.
    Parameters and buffers are cut, and attributes that repeat their sizes follow, in PyTorch's layers and in the user's
    own modules; so do those of a configuration that several modules share (it is copied), where all agree. An
    `nn.MultiheadAttention` that loses heads becomes a subclass that reads its sizes from its weights.
    Tied parameters stay tied; devices, types, `requires_grad`, modes and hooks stay; gradients are dropped, and an
    optimizer has to be made anew, for parameters are new objects.

    With `verify`, the module is run on `example_inputs` (a tensor, arguments, or a dict of them), or on inputs made up
    for the model: its outputs must be those of the optimized graph, or, with a plan, those that the module itself gave
    with the values scattered over the original shapes (then inputs are needed, and without them nothing is run). Hooks
    fire in these runs. Names do not always tell which attributes are sizes: then the outputs do, in a few more runs.

    Returns what was changed. Raises `EditRefused`, and leaves the module as it was, where its forward has a size
    written into it, and `UsageError` where the module is not the one that was optimized.
    """
    backend()
    if not isinstance(source, Plan | ir.Model):
        raise UsageError(
            f"the second argument is a {type(source).__name__}",
            remedy="give the optimized model, or a plan: bevel.plan(model), Plan.load(path)",
        )
    from bevel.backends.torch.surgery import operate

    feeds = _made_up(source, seed) if isinstance(source, ir.Model) and verify and example_inputs is None else []
    return operate(module, source, examples=example_inputs, feeds=feeds, verify=verify)


def _made_up(model: ir.Model, seed: int) -> list[Any]:
    with Session(model, level=Level.AS_WRITTEN) as session:
        return list(synthesize(model, seed, FEEDS, session.run))
