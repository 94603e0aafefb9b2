"""Names for the outputs of a graph, from what the module returned: `logits`, `hidden_states_0`, or just `output`."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

import onnx_ir as ir
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind
from torch.utils import _pytree

from bevel.ir.names import Names

OUTPUT: Final = "output"


def name_outputs(model: ir.Model, program: ExportedProgram) -> None:
    """Name the outputs after the fields, keys and places they had in what the module returned.

    Each becomes a value of its own: an Identity stands before one that is an input, an initializer, or given twice.
    """
    names = output_names(program)
    if len(names) != len(model.graph.outputs):
        names = [f"{OUTPUT}_{index}" for index in range(len(model.graph.outputs))]
    taken = Names(model)
    for index, name in enumerate(names):
        own_value(model.graph, index).name = taken.free(name)


def own_value(graph: ir.Graph, index: int) -> ir.Value:
    """Give an output that a node computes and that is no other output, with an Identity if need be."""
    value = graph.outputs[index]
    if value.producer() is not None and not any(value is other for other in list(graph.outputs)[:index]):
        return value
    node = ir.node("Identity", [value])
    copy = node.outputs[0]
    copy.type, copy.shape = value.type, value.shape
    graph.append(node)
    graph.outputs[index] = copy
    return copy


def output_names(program: ExportedProgram) -> list[str]:
    """Return a name for each output that is no constant, in order."""
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    structure = program.call_spec.out_spec
    if structure is None or structure.num_leaves != len(specs):
        return []
    returned = _pytree.tree_unflatten(list(range(len(specs))), structure)
    names = {leaf: "_".join(path) for path, leaf in leaves(returned, ()) if isinstance(leaf, int)}
    constant = {index for index, spec in enumerate(specs) if isinstance(spec.arg, ConstantArgument)}
    return [as_name(names.get(index, str(index))) for index in range(len(specs)) if index not in constant]


def leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Walk what a module returned; where it is of an unknown kind, its parts have no names."""
    if isinstance(value, Mapping):
        children: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        children = list(zip(value._fields, value, strict=True))
    elif isinstance(value, list | tuple):
        children = list(enumerate(value))
    elif is_dataclass(value):
        children = [(field.name, getattr(value, field.name)) for field in fields(value)]
    else:
        yield path, value
        return
    for key, child in children:
        yield from leaves(child, (*path, str(key)))


def as_name(path: str) -> str:
    """Make a name that says what it is: places alone do not.

    >>> as_name(""), as_name("1"), as_name("logits")
    ('output', 'output_1', 'logits')
    """
    if not path:
        return OUTPUT
    return path if not path[0].isdecimal() else f"{OUTPUT}_{path}"
