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
    given: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        given = {"args": arguments.args, "kwargs": dict(arguments.kwargs), "dynamic_shapes": arguments.dynamic_shapes}
    with quiet(), evaluating(source):
        try:
            result = torch.onnx.export(
                source, **given, dynamo=True, optimize=False, opset_version=OPSET, verbose=False, report=False
            )
        except EXPORT_ERRORS as error:
            raise failure(error) from error
    assert result is not None and result.exported_program is not None
    return result.model, result.exported_program


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


REMEDIES: Final[Mapping[str, str]] = {
    "No ONNX function found": "replace that operator in the module, or write the module's ONNX file by other means",
    "data-dependent": "the forward decides by the content of a tensor: write it with torch.where or torch.cond",
    "Could not guard": "the forward decides by the content of a tensor: write it with torch.where or torch.cond",
    "onnxscript": "pip install 'bevel[torch]'",
    "Constraints violated": "leave that axis out of dynamic_shapes, or change the code that needs its size as a number",
    "marked dynamic": "leave that axis out of dynamic_shapes, or change the code that needs its size as a number",
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
    """Give the first line of what was raised first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
