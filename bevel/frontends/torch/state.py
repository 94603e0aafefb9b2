"""What a module's `state_dict` holds: which initializer is which parameter, what is tied, what the graph leaves out."""

from collections.abc import Hashable, Mapping
from typing import TypeAlias

import onnx_ir as ir
from torch import Tensor, nn
from torch.export import ExportedProgram

from bevel.errors import UnsupportedModel
from bevel.frontends.torch.tensors import shared
from bevel.ir.names import value_names
from bevel.ir.provenance import Origin, Provenance, provenance, set_origin, set_provenance

Source: TypeAlias = nn.Module | ExportedProgram
State: TypeAlias = Mapping[str, Tensor]


def state_of(source: Source) -> dict[str, Tensor]:
    """Return the tensors of a module's `state_dict` by name: no copies, and one object for all names of what is tied.

    Buffers that are not persistent are not among them; like other constants, they belong to the graph.
    """
    held = source.state_dict if isinstance(source, ExportedProgram) else source.state_dict(keep_vars=True)
    state = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
    for name, tensor in state.items():
        if tensor.device.type == "meta":
            raise UnsupportedModel(
                "has no content: it is on the meta device", where=name, remedy="load the module's weights first"
            )
    return state


def note_provenance(model: ir.Model, state: State) -> None:
    """Note in every initializer which parameter or buffer it is; initializers of one parameter become one.

    What is tied goes by the first of its names. Complex ones count as constants: they are among the unused.
    """
    names, taken = names_by_identity(state), value_names(model)
    first: dict[Hashable, ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        tensor = held_tensor(value, state)
        key = None if tensor is None else identity(tensor)
        if key not in names or state[names[key][0]].is_complex():
            continue  # a complex parameter is real to the exporter, with an axis more: no transform says that
        kept = first.setdefault(key, value)
        if kept is not value:
            value.replace_all_uses_with(kept, replace_graph_outputs=True)
            del model.graph.initializers[str(value.name)]
            continue
        name, tensor = names[key][0], state[names[key][0]]
        if name not in taken:
            value.name = name
        set_provenance(value, Provenance(names[key], is_trained(tensor)))
        value.const_value = shared(tensor, str(value.name))


def put_parameters_first(model: ir.Model) -> None:
    """Order the initializers as those of a kept export: what came from the module, then other constants."""
    initializers = model.graph.initializers
    values = sorted(initializers.values(), key=lambda value: provenance(value) is None)
    initializers.clear()
    for value in values:
        initializers.add(value)


def held_tensor(value: ir.Value, state: State) -> Tensor | None:
    """Return the torch tensor behind an initializer; by its content where the name is not one of the state's."""
    if value.name is not None and value.name in state:
        return state[value.name]
    raw = getattr(value.const_value, "raw", None)
    return raw if isinstance(raw, Tensor) else None


def names_by_identity(state: State) -> dict[Hashable, tuple[str, ...]]:
    """Group the names that stand for one tensor."""
    names: dict[Hashable, tuple[str, ...]] = {}
    for name, tensor in state.items():
        key = identity(tensor)
        names[key] = (*names.get(key, ()), name)
    return names


def identity(tensor: Tensor) -> Hashable:
    """Return what two tensors have in common if they are one: the same numbers in memory, seen the same way."""
    if tensor.numel() == 0:
        return id(tensor)
    start = tensor.untyped_storage().data_ptr()
    return tensor.device, start, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def is_trained(tensor: Tensor) -> bool:
    """Tell whether an optimizer would train it."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def note_origin(model: ir.Model, state: State) -> None:
    """Note every name of the module, and the parameters and buffers that the graph does not use, for the way back."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    sources = (provenance(value) for value in values)
    used = {name for source in sources if source is not None for name in source.names}
    unused = {name: (is_trained(tensor), shared(tensor, name)) for name, tensor in state.items() if name not in used}
    set_origin(model, Origin(tuple(state), unused))
