"""The call of PyTorch's exporter: quiet, in evaluation mode, and with the reason in one line where it fails."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

from bevel.errors import UnsupportedModel
from bevel.frontends.torch.arguments import Arguments
from bevel.frontends.torch.state import Source

OPSET: Final = 23
"""From 23 on, the exporter has an operator of its own for attention and for RMS normalization (20 brought Gelu, 21
GroupNormalization); what is above 23 it reaches by converting, and nothing in it is needed. ONNX Runtime reads up to
26."""

NOISY: Final = ("torch", "onnxscript", "onnx_ir")
"""The packages that log while they export."""

# All that the exporter was seen to raise; most of it comes wrapped in the first.
EXPORT_ERRORS: Final = (
    torch.onnx.OnnxExporterError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)


class ExportFailed(UnsupportedModel):
    """The exporter gave up; `reason` is what it said first."""


def exported(source: Source, arguments: Arguments) -> tuple[ir.Model, ExportedProgram]:
    """Export a module or program as it is; give the graph, and the program it was written from."""
    with quiet(), evaluating(source):
        try:
            result = torch.onnx.export(
                source, **given(source, arguments), dynamo=True, optimize=False, opset_version=OPSET, verbose=False
            )
        except EXPORT_ERRORS as error:
            raise failure(error) from error
    assert result is not None and result.exported_program is not None
    return result.model, result.exported_program


def given(source: Source, arguments: Arguments) -> dict[str, Any]:
    """Return the arguments as the exporter takes them."""
    if isinstance(source, ExportedProgram):
        return {}
    args, kwargs = arguments.args, dict(arguments.kwargs)
    if args and isinstance(args[-1], dict) and not kwargs:
        args = (*args, {})  # the exporter takes a dict that comes last for keyword arguments
    return {"args": args, "kwargs": kwargs, "dynamic_shapes": arguments.dynamic_shapes}


@contextmanager
def evaluating(source: Source) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back into its own mode."""
    if isinstance(source, ExportedProgram):
        yield
        return
    modes = {part: part.training for part in source.modules()}
    source.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter prints, warns and logs from the user, who asked for a model."""
    loggers = [logging.getLogger(name) for name in (*NOISY, *logging.root.manager.loggerDict) if is_noisy(name)]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def is_noisy(name: str) -> bool:
    """Tell whether a logger belongs to one of the packages that log while they export."""
    return name.split(".")[0] in NOISY


VARYING: Final = "leave that axis out of dynamic_shapes, or change the code that needs its size as a number"
DECIDING: Final = "the forward decides by the content of a tensor: write it with torch.where or torch.cond"
REMEDIES: Final[Mapping[str, str]] = {
    "No ONNX function found": "replace that operator in the module, or write the module's ONNX file by other means",
    "data-dependent": DECIDING,
    "Could not guard": DECIDING,
    "onnxscript": "pip install 'bevel[torch]'",
    "Constraints violated": VARYING,
    "inferred a static shape": VARYING,
    "not in range": VARYING,
    "not in VR": VARYING,
}


def failure(error: BaseException) -> ExportFailed:
    """Say why the exporter gave up, and what can be done."""
    reason = reason_of(error)
    known = (remedy for sign, remedy in REMEDIES.items() if sign in reason)
    return ExportFailed(
        f"cannot be exported: {reason}",
        where="the module",
        remedy=next(known, "torch.export.export(module, args) shows where it stops"),
    )


def reason_of(error: BaseException) -> str:
    """Give the first line of what was raised first, with the second if the first only announces it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])[:300]


def fault_of(module: nn.Module, arguments: Arguments) -> str:
    """Run a module as it is and say what it raises, if it does; its buffers stay what they are."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with quiet(), evaluating(module), torch.no_grad():
            module(*arguments.args, **arguments.kwargs)
    except EXPORT_ERRORS as error:
        return reason_of(error)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return ""
