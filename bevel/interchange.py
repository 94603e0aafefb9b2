"""PyTorch modules, verified: what a model becomes runs beside it, and must answer the same.

PyTorch is imported when one of these functions is called, not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir

from bevel.backends.onnxruntime import Level, Session
from bevel.errors import UnsupportedModel, UsageError
from bevel.passes.base import Preserving
from bevel.passes.calibration import Calibration, Source
from bevel.passes.pipeline import FEEDS, VERIFIED_FEEDS
from bevel.passes.rounding import unit
from bevel.passes.synthesis import synthesize
from bevel.passes.verify import Observation, compare, observe

if TYPE_CHECKING:
    from bevel.backends.torch import GraphModule

# Two libraries sum in other orders (1e-5, see `bevel.passes.base`) and approximate exp, tanh and erf by other
# polynomials, about 1e-6 each; a deep network multiplies that by what its layers amplify, ten times is usual.
KERNELS_RTOL: Final = 1e-4


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


def backend() -> Any:
    """Return `bevel.backends.torch`, or raise `UsageError` where PyTorch is not installed."""
    try:
        return import_module("bevel.backends.torch")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "safetensors"):
            raise
        raise UsageError(
            f"{error.name} is not installed, which modules need", remedy="pip install 'bevel[torch]'"
        ) from error


def feeds_of(model: ir.Model, calibration: Source | Calibration | None, seed: int) -> list[dict[str, Any]]:
    """Return the inputs to compare on: some of the calibration set, or made-up ones."""
    if calibration is not None:
        given = calibration if isinstance(calibration, Calibration) else Calibration.of(calibration, model)
        return list(islice(given, VERIFIED_FEEDS))
    with Session(model, level=Level.AS_WRITTEN) as session:
        return list(synthesize(model, seed, FEEDS, session.run))


def check(model: ir.Model, module: GraphModule, feeds: Iterable[Mapping[str, Any]], where: str) -> None:
    """Raise `PromiseBroken` unless a module answers `feeds` as the model does in ONNX Runtime."""
    try:
        with Session(model, level=Level.AS_WRITTEN) as session:
            expected = observe(session, feeds, repeat=True)
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{error.what}, so the module cannot be verified", where=error.where, remedy="verify=False converts anyway"
        ) from error
    found = Observation(tuple(backend().answer(module, feed) for feed in feeds))
    compare(expected, found, Preserving(KERNELS_RTOL), epsilon=unit(model)).demand(where)
