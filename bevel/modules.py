"""PyTorch modules out of models, and edited as models were: each runs beside its model and must answer the same.

PyTorch is imported when one of these functions is called, not before.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir

from bevel.backends.chance import called, random_nodes
from bevel.backends.onnxruntime import Level, Session
from bevel.backends.optional import backend as backend
from bevel.errors import UnsupportedModel, UsageError
from bevel.ir.plan import Plan
from bevel.passes.base import Lossy, Preserving
from bevel.passes.calibration import Calibration, Source
from bevel.passes.pipeline import FEEDS, VERIFIED_FEEDS
from bevel.passes.rounding import kernels_rtol, multiply_precisely, resolutions, unit
from bevel.passes.synthesis import synthesize
from bevel.passes.verify import Observation, Verdict, compare, observe

if TYPE_CHECKING:
    from torch import nn

    from bevel.backends.torch import GraphModule
    from bevel.backends.torch.surgery import Surgery

logger = logging.getLogger(__name__)

ROUNDED_TWICE: Final = 2


def to_torch(
    model: ir.Model, *, verify: bool = True, calibration: Source | Calibration | None = None, seed: int = 0
) -> GraphModule:
    """Return a trainable `nn.Module` that computes what the model computes.

    Weights become parameters and other tensors buffers, under the names of the module that the model was loaded from,
    or else of its initializers; tied ones stay tied. `forward` takes the inputs of the graph in order, or by name, and
    returns its output, or a tuple of several. `module.code` is the Python that it runs. The module works in training
    mode, on any device, in other types, under `torch.compile` and `torch.export`, and `bevel.load` takes it back.

    The module is run beside the model in ONNX Runtime, on `calibration` or made-up inputs, unless `verify` is false.
    Raises `UnsupportedModel` for an operator without a torch function, naming the node, or if ONNX Runtime cannot run
    the model, `PromiseBroken` if the answers differ by more than 1e-4 of an output's largest value, and `UsageError`
    where PyTorch is not installed.
    """
    torch = backend()
    module: GraphModule = torch.to_torch(model)
    if verify:
        check(model, module, feeds_of(model, calibration, seed), "to_torch")
    return module


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
    surgery = backend("surgery")
    if not isinstance(source, Plan | ir.Model):
        raise UsageError(
            f"the second argument is a {type(source).__name__}",
            remedy="give the optimized model, or a plan: bevel.plan(model), Plan.load(path)",
        )
    made_up = verify and example_inputs is None
    feeds = feeds_of(source, None, seed) if isinstance(source, ir.Model) and made_up else []
    operation: Surgery = surgery.operate(module, source, examples=example_inputs, feeds=feeds, verify=verify)
    return operation


def feeds_of(model: ir.Model, calibration: Source | Calibration | None, seed: int) -> list[dict[str, Any]]:
    """Return the inputs to compare on: some of the calibration set, or made-up ones."""
    if calibration is not None:
        given = calibration if isinstance(calibration, Calibration) else Calibration.of(calibration, model)
        return list(islice(given, VERIFIED_FEEDS))
    with Session(model, level=Level.AS_WRITTEN) as session:
        return list(synthesize(model, seed, FEEDS, session.run))


def check(model: ir.Model, module: GraphModule, feeds: Iterable[Mapping[str, Any]], where: str) -> None:
    """Raise `PromiseBroken` unless a module answers `feeds` as the model does in ONNX Runtime.

    Products with weights in blocks are not to round their activations in ONNX Runtime, for they do not in the module;
    where its kernel always does, for experts of 8 bits, answers may be as far apart as that.
    """
    for node in random_nodes(model):
        raise UnsupportedModel(
            "draws random numbers, so the module cannot be verified",
            where=called(node),
            remedy="verify=False converts anyway",
        )
    precise = model.clone()
    multiply_precisely(precise)
    try:
        with Session(precise, level=Level.AS_WRITTEN) as session:
            expected = observe(session, feeds, repeat=True, resolutions=resolutions(model))
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{error.what}, so the module cannot be verified", where=error.where, remedy="verify=False converts anyway"
        ) from error
    torch = backend()
    found = Observation(tuple(torch.answer(module, feed) for feed in feeds))
    limit = max(torch.KERNELS_RTOL, kernels_rtol(model))
    verdict = compare(expected, found, Preserving(limit), epsilon=unit(model))
    if not verdict.kept and not _is_rounding(verdict, found, module, feeds):
        verdict.demand(where, "this is a bug in a torch function; verify=False converts anyway, to find which")


def _is_rounding(verdict: Verdict, found: Observation, module: GraphModule, feeds: Iterable[Mapping[str, Any]]) -> bool:
    """Say whether an error is no larger than what single precision itself does to this network.

    Some networks subtract nearly equal numbers (a variance as the mean of squares less the square of the mean). How
    much rounding they amplify shows where the module is run in double precision: ONNX Runtime's rounding and torch's
    may each be as far from that, so that they differ by twice as much.
    """
    try:
        exact = Observation(tuple(backend().answer_exactly(module, feed) for feed in feeds))
    except UnsupportedModel:  # where a graph mixes types: then nothing is excused
        return False
    noise = {each.output: each.relative for each in compare(found, exact, Lossy()).outputs}
    for each in verdict.broken:
        if not each.relative <= ROUNDED_TWICE * noise[each.output] < math.inf:
            return False
        logger.warning(
            "output %s is %.2g from ONNX Runtime's, which is this network's own rounding: in double precision the "
            "module answers %.2g apart from itself",
            each.output,
            each.relative,
            noise[each.output],
        )
    return True
