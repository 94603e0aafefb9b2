"""PyTorch models in: from an `nn.Module` with example inputs, or a `torch.export.ExportedProgram`."""

import os

import onnx
import onnx_ir as ir
from torch.export import ExportedProgram

from bevel.errors import UsageError
from bevel.frontends.onnx import load as load_onnx
from bevel.frontends.torch.arguments import FORMS, Arguments, DynamicShapes, Examples, arguments_of
from bevel.frontends.torch.axes import name_axes
from bevel.frontends.torch.cache import kept
from bevel.frontends.torch.fingerprint import fingerprint
from bevel.frontends.torch.habits import bypass_copies, drop_zero_biases, forget_notes, part_names
from bevel.frontends.torch.layout import fold_layouts
from bevel.frontends.torch.outputs import name_outputs
from bevel.frontends.torch.remedies import exported_somehow
from bevel.frontends.torch.state import Source, State, note_origin, note_provenance, put_parameters_first, state_of
from bevel.ir.canonical import Functions

__all__ = ["DynamicShapes", "Examples", "Source", "load"]


def load(
    source: Source,
    example_inputs: Examples | None = None,
    *,
    dynamic_shapes: DynamicShapes | None = None,
    cache: str | os.PathLike[str] | None = None,
    functions: Functions = "inline",
) -> ir.Model:
    """Export a module as it computes in evaluation mode, and return it in canonical form.

    Initializers share the memory of the module's parameters and know their names (`bevel.ir.provenance`); nothing
    writes to it, and the module is not changed. Tied parameters are one initializer. What the graph does not use is
    noted as its origin.

    With a folder `cache`, an export is kept there, and taken from there when a module of the same code, attributes and
    sizes comes again, whatever its parameters are.

    Raises `UsageError` where the example inputs do not fit, `UnsupportedModel` with the exporter's reason in one line.
    """
    state = state_of(source)
    arguments = given(source, example_inputs, dynamic_shapes)
    if isinstance(source, ExportedProgram) and cache is not None:
        raise UsageError("an ExportedProgram takes no cache", remedy="keep it by torch.export.save")
    if cache is None or isinstance(source, ExportedProgram):
        return finished(captured(source, arguments, state), state, functions)
    key = fingerprint(source, state, arguments)
    return finished(kept(cache, key, state, lambda: captured(source, arguments, state)), state, functions)


def given(source: Source, example_inputs: Examples | None, dynamic_shapes: DynamicShapes | None) -> Arguments:
    """Read the arguments of an export; an exported program has had them."""
    if isinstance(source, ExportedProgram):
        if example_inputs is not None or dynamic_shapes is not None:
            raise UsageError(
                "an ExportedProgram takes no example_inputs and no dynamic_shapes",
                remedy="give them to torch.export.export, or load the module itself",
            )
        return Arguments()
    if example_inputs is None:
        raise UsageError(f"a module ({type(source).__name__}) needs example_inputs", remedy=FORMS)
    return arguments_of(source, example_inputs, dynamic_shapes)


def captured(source: Source, arguments: Arguments, state: State) -> ir.Model:
    """Export, and put names where the exporter put numbers."""
    model, program = exported_somehow(source, arguments)
    part_names(model)
    name_axes(model, program, arguments)
    note_provenance(model, state)
    bypass_copies(model)
    name_outputs(model, program)
    forget_notes(model)
    needed = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(needed, ignore_unknown=True))
    return model


def finished(raw: ir.Model, state: State, functions: Functions) -> ir.Model:
    """Bring an exported graph into canonical form, with the layouts of parameters folded into them."""
    put_parameters_first(raw)
    model = load_onnx(raw, functions=functions)
    drop_zero_biases(model)
    fold_layouts(model)
    note_origin(model, state)
    return model
