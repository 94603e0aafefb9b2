"""Where models come from."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import onnx_ir as ir

from bevel import registry
from bevel.errors import UsageError
from bevel.frontends import onnx
from bevel.ir.canonical import Functions

if TYPE_CHECKING:
    from bevel.frontends.torch import DynamicShapes, Examples
    from bevel.frontends.torch import Source as Torch

__all__ = ["load"]

REMEDY: Final = "they belong to a PyTorch module: bevel.load(module, example_inputs)"


def load(
    source: "onnx.Source | Torch",
    example_inputs: "Examples | None" = None,
    *,
    dynamic_shapes: "DynamicShapes | None" = None,
    cache: str | os.PathLike[str] | None = None,
    functions: Functions = "inline",
) -> ir.Model:
    """Read a model from wherever it comes, and return it in canonical form.

    An ONNX model is given as a path, bytes, a binary file, an `onnx.ModelProto` or an `onnx_ir.Model`; see
    `bevel.frontends.onnx`. A PyTorch module is given with example inputs: a tensor, a tuple of positional arguments, a
    dict of keyword arguments, or `(args, kwargs)`. Axes whose size may vary are named:
    `dynamic_shapes={"image": {0: "batch"}}`. Exports are kept in the folder `cache`, if one is given. A
    `torch.export.ExportedProgram` needs neither; see `bevel.frontends.torch`.

    Other frameworks come as plugins: an entry point of the group `bevel.frontends`, named as the package whose classes
    it reads, that is a function with the parameters of this one.

    Raises `UsageError`, or a `ModelError` which names file, node or value, and remedy.
    """
    frontend = frontend_of(source)
    if frontend is not None:
        options = {"dynamic_shapes": dynamic_shapes, "cache": cache, "functions": functions}
        model: ir.Model = frontend(source, example_inputs, **options)
        return model
    for name, option in {"example_inputs": example_inputs, "dynamic_shapes": dynamic_shapes, "cache": cache}.items():
        if option is not None:
            raise UsageError(f"an ONNX model takes no {name}", remedy=REMEDY)
    return onnx.load(cast(onnx.Source, source), functions=functions)


def frontend_of(source: Any) -> Any:
    """Return the installed frontend for a source by the package that its class comes from; None if it is ONNX.

    An object of a framework's class exists only where that is imported already, so nothing is imported to find out.
    """
    installed = registry.frontends()
    return next((installed[name] for name in packages(source) if name in installed), None)


def packages(source: Any) -> Iterator[str]:
    """Give the packages that define the classes of an object, its own first.

    >>> next(packages(ir.tensor([1.0])))
    'onnx_ir'
    """
    for kind in type(source).__mro__:
        yield kind.__module__.partition(".")[0]
