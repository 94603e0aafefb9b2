"""A PyTorch module exported to ONNX by both of its exporters. Needs torch."""

import io
import logging
import warnings
from collections.abc import Mapping

import onnx
import torch
from torch import Tensor, nn

OPSET = 18


def quiet() -> None:
    """The exporters warn about deprecation and a missing torchvision at every call, and trace at debug level."""
    warnings.filterwarnings("ignore", module="torch|copyreg|contextlib|tests.zoo")
    for name in ("torch.onnx", "torch.__trace"):
        logging.getLogger(name).setLevel(logging.ERROR)


def dynamo(
    module: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[int, str], opset: int = OPSET
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph as it was captured, and after the exporter's own optimizer (which runs by default)."""
    quiet()
    sizes = {place: torch.export.Dim(name, max=32) for place, name in axes.items()}
    program = torch.onnx.export(
        module,
        kwargs=dict(inputs),
        dynamo=True,
        optimize=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=["output"],
        dynamic_shapes=dict.fromkeys(inputs, sizes),
        verbose=False,
    )
    assert program is not None
    captured = program.model_proto
    program.optimize()
    return captured, program.model_proto


def torchscript(
    module: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[int, str], opset: int = OPSET
) -> onnx.ModelProto:
    """The graph that TorchScript's tracer sees, with constants folded as it does by default."""
    quiet()
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        (dict(inputs),),
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=["output"],
        dynamic_axes={**{name: dict(axes) for name in inputs}, "output": {0: axes[0]}},
    )
    return onnx.load_from_string(buffer.getvalue())
