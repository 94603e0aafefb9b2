"""Sizes that vary get the names the user gave them; the exporter numbers them."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import onnx_ir as ir
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree

from bevel.frontends.torch.arguments import Arguments

SYMBOL: Final = re.compile(r"\b[A-Za-z_]\w*\b")


def name_axes(model: ir.Model, program: ExportedProgram, arguments: Arguments) -> None:
    """Rename the sizes of the inputs' axes, and all that is computed from them, as the user calls them."""
    names: dict[str, str] = {}
    for value, place, name in named_axes(model, program, arguments):
        size = value.shape[place] if value.shape is not None else None
        if isinstance(size, ir.SymbolicDim) and size.value is not None:
            names.setdefault(size.value, name)
    for graph in model.graphs():
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None and names:
                value.shape = ir.Shape([renamed(size, names) for size in value.shape])


def named_axes(model: ir.Model, program: ExportedProgram, arguments: Arguments) -> Iterator[tuple[ir.Value, int, str]]:
    """Give the inputs of the graph whose axes have names."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    examples = _pytree.tree_leaves((arguments.args, dict(arguments.kwargs)))
    inputs = {value.name: value for value in model.graph.inputs}
    for spec, example in zip(specs, examples, strict=False):
        value = inputs.get(spec.arg.name)
        for axis in arguments.axes:
            if value is not None and axis.tensor is example:
                yield value, axis.place, axis.name


def renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | ir.SymbolicDim:
    """Rename the symbols in a size.

    >>> renamed(ir.SymbolicDim("2*s3 + 1"), {"s3": "batch"})
    SymbolicDim('2*batch + 1')
    """
    if isinstance(size, int) or size.value is None:
        return size
    return ir.SymbolicDim(SYMBOL.sub(lambda match: names.get(match[0], match[0]), size.value))
