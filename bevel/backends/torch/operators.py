"""Operators as lines of Python: an expression, or the call of a torch function, as the table has them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from bevel.backends.torch.calls import Call, Parameter, calls
from bevel.backends.torch.lines import assign
from bevel.backends.torch.nodes import is_wanted, literal, plain, title
from bevel.backends.torch.table import PLAIN, Lowering, find
from bevel.errors import UnsupportedModel
from bevel.ir.provenance import provenance

if TYPE_CHECKING:
    from bevel.backends.torch.source import Writer

MEANINGLESS: Final = frozenset({"consumed_inputs"})
"""Attributes of operator sets below 6 that once planned memory."""
WITHOUT: Final = "replace the operator before converting, or register a torch function that knows it"
_ATTRIBUTE: Final = re.compile(r"\{([a-z]+)\}")
_INFIX: Final = re.compile(r"\{0\} \S+ \{1\}")


def write_operator(writer: Writer, node: ir.Node) -> None:
    """Write a node as the table says, or refuse it by name."""
    entry = entry_of(writer, node)
    if entry is None:
        raise UnsupportedModel(
            f"the operator has no torch function{f' in {node.domain}' if node.domain else ''}",
            where=title(node),
            remedy="register one with bevel.backends.torch.lower, in a package with a `bevel.lowerings` entry point",
        )
    refusal = entry.refuses({name: plain(attribute) for name, attribute in node.attributes.items()})
    if refusal:
        raise UnsupportedModel(refusal, where=title(node), remedy="replace the operator before converting")
    if entry.function is None:
        _write_line(writer, node, entry)
    else:
        _write_call(writer, node, calls(entry.function))


def entry_of(writer: Writer, node: ir.Node) -> Lowering | None:
    """Look a node up in the table."""
    first, result = node.inputs[0] if node.inputs else None, node.outputs[0] if node.outputs else None
    found = find(node.domain, node.op_type, writer.version(node), _type(first), _type(result))
    return next((entry for entry in found if not entry.literal or _number(writer, node.inputs[1])), None)


def _write_line(writer: Writer, node: ir.Node, entry: Lowering) -> None:
    given = {name: _written(writer, node, entry, name) for name in _ATTRIBUTE.findall(entry.line)}
    known = {*given, *MEANINGLESS, *entry.ignores}
    extra = next((name for name in node.attributes if name not in known), None)
    if extra is not None:
        raise UnsupportedModel(f"attribute {extra!r} is not supported", where=title(node), remedy=WITHOUT)
    operands = _operands(writer, node, literals=entry.literal or bool(_INFIX.fullmatch(entry.line)))
    (output,) = node.outputs
    writer.lines.append(assign([writer.make(output)], entry.line.format(*operands, **given)))


def _written(writer: Writer, node: ir.Node, entry: Lowering, name: str) -> str:
    """Return the code of an attribute of a line."""
    if name == "to":
        return writer.type_code(node.attributes[name].as_int())
    return str(node.attributes.get_int(name, entry.defaults.get(name)))


def _operands(writer: Writer, node: ir.Node, *, literals: bool) -> list[str]:
    """Return the code of a node's inputs; with `literals`, one that is a single constant is written as a number."""
    numbers = [_number(writer, value) if literals else "" for value in node.inputs]
    place = max((place for place, number in enumerate(numbers) if number), default=None)
    return [numbers[k] if k == place else writer.tensor(value) for k, value in enumerate(node.inputs)]


def _number(writer: Writer, value: ir.Value | None) -> str:
    """Return the code of a constant scalar that comes from no parameter; an empty text if it is none."""
    tensor = None if value is None or value in writer.values else value.const_value
    if value is None or tensor is None or len(tensor.shape) or tensor.dtype not in PLAIN or provenance(value):
        return ""
    number = tensor.numpy().item()
    return repr(number) if math.isfinite(number) else ""


def _write_call(writer: Writer, node: ir.Node, call: Call) -> None:
    name = writer.use(call.function)
    given = [*_inputs(writer, node, call), *_attributes(writer, node, call), *_special(writer, node, call)]
    _assign_outputs(writer, node, call, f"{name}({', '.join(given)})")


def _assign_outputs(writer: Writer, node: ir.Node, call: Call, expression: str) -> None:
    """Assign what a call gives to the outputs that anything reads."""
    last = max((place for place, value in enumerate(node.outputs) if is_wanted(value)), default=0)
    if not call.several or last == 0:
        writer.lines.append(assign([writer.make(node.outputs[0])], f"{expression}[0]" if call.several else expression))
        return
    names = [writer.make(value) if is_wanted(value) else "_" for value in node.outputs[: last + 1]]
    rest = ["*_"] if len(names) < call.count(len(node.outputs)) else []
    writer.lines.append(assign([*names, *rest], expression))


def _inputs(writer: Writer, node: ir.Node, call: Call) -> Iterator[str]:
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    if len(inputs) > len(call.positional) and call.variadic is None:
        raise UnsupportedModel(f"has {len(inputs)} inputs, more than are supported", where=title(node), remedy=WITHOUT)
    for place, value in enumerate(inputs):
        parameter = call.positional[place] if place < len(call.positional) else call.variadic
        assert parameter is not None
        yield _input(writer, value, parameter)


def _input(writer: Writer, value: ir.Value | None, parameter: Parameter) -> str:
    if parameter.kind in ("int", "number"):
        return writer.content(value, single=True)
    return writer.content(value, single=False) if parameter.kind == "ints" else writer.tensor(value)


def _attributes(writer: Writer, node: ir.Node, call: Call) -> Iterator[str]:
    for name, attribute in node.attributes.items():
        parameter = call.keywords.get(name)
        if parameter is None and name in MEANINGLESS:
            continue
        if parameter is None:
            raise UnsupportedModel(f"attribute {name!r} is not supported", where=title(node), remedy=WITHOUT)
        if attribute.type is ir.AttributeType.TYPE_PROTO:
            continue  # what a sequence or optional holds shows when it runs
        if attribute.type is ir.AttributeType.TENSOR:
            yield f"{name}={writer.hold(f'{node.name or node.op_type}_{name}', attribute.as_tensor())}"
        elif parameter.kind == "dtype":
            yield f"{name}={writer.type_code(attribute.as_int())}"
        elif plain(attribute) != parameter.default:
            yield f"{name}={literal(plain(attribute), node)}"


_SPECIAL: Final[Mapping[str, Callable[[Writer, ir.Node], str]]] = {
    "training": lambda writer, node: "self.training",
    "device": lambda writer, node: "device",
    "version": lambda writer, node: str(writer.version(node)),
    "outputs": lambda writer, node: str(len(node.outputs)),
    "output_type": lambda writer, node: str(_type(node.outputs[0])),
    "input_types": lambda writer, node: repr(tuple(_type(value) for value in node.inputs)),
}


def _special(writer: Writer, node: ir.Node, call: Call) -> Iterator[str]:
    for name in call.special:
        yield f"{name}={_SPECIAL[name](writer, node)}"


def _type(value: ir.Value | None) -> int:
    return 0 if value is None else int(value.dtype or 0)
