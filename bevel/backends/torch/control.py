"""If, Loop, Scan and SequenceMap as Python's own control flow.

The bodies are written into the same function: a value of the outer graph is a variable like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from bevel.backends.torch.expressions import Expression, Host
from bevel.backends.torch.lines import Line, assign
from bevel.backends.torch.nodes import is_wanted, title
from bevel.backends.torch.running import collected
from bevel.errors import UnsupportedModel

if TYPE_CHECKING:
    from bevel.backends.torch.source import Writer


def write_if(writer: Writer, node: ir.Node) -> None:
    """Write `if condition: ... else: ...`; both branches assign the outputs."""
    (condition,) = node.inputs
    assert condition is not None
    host = writer.host(condition)
    test = host.entries.ravel()[0] if host is not None else writer.tensor(condition)
    outputs = [writer.name(value.name) for value in node.outputs]
    blocks = [
        writer.block(partial(_branch, writer, node.attributes[name].as_graph(), outputs))
        for name in ("then_branch", "else_branch")
    ]
    writer.values.update(zip(node.outputs, outputs, strict=True))
    then, other = blocks
    writer.lines.append(Line(f"if {test}:", tuple(outputs), block=then, other=Line("else:", block=other)))


def _branch(writer: Writer, graph: ir.Graph, outputs: Sequence[str]) -> None:
    writer.nodes(graph)
    for name, value in zip(outputs, graph.outputs, strict=True):
        writer.lines.append(assign([name], writer.tensor(value)))


def write_loop(writer: Writer, node: ir.Node) -> None:
    """Write a `for` over a known number of rounds, or a `while`, if a condition of the body may end it."""
    body = node.attributes["body"].as_graph()
    operands: list[ir.Value | None] = [*node.inputs, None, None]
    most, start, initial = operands[0], operands[1], operands[2 : len(node.inputs)]
    number, condition, *carried = body.inputs
    rounds = None if most is None else writer.content(most, single=True)
    variables = [writer.make(value) for value in carried]
    for variable, value in zip(variables, initial, strict=True):
        writer.lines.append(assign([variable], writer.tensor(value)))
    stacks = [writer.name(f"{value.name}_all") for value in node.outputs[len(carried) :]]
    writer.lines.extend(assign([stack], "[]") for stack in stacks)
    counter = writer.name(number.name)
    writer.hosts[number] = Host(np.array(Expression(counter), object), ir.DataType.INT64)
    always = (start is None or _is_true(writer, start)) and _stays_true(writer, body.outputs[0], condition)
    goes_on = writer.make(condition)
    if always and rounds is not None:
        writer.hosts[condition] = Host(np.array(True, object), ir.DataType.BOOL)
        del writer.values[condition]
        heading = f"for {counter} in range({rounds}):"
    else:
        writer.lines.append(assign([goes_on], "True" if start is None else writer.tensor(start)))
        writer.lines.append(assign([counter], "0"))
        heading = f"while {goes_on}:" if rounds is None else f"while {counter} < {rounds} and {goes_on}:"

    def write() -> None:
        writer.nodes(body)
        after = [writer.tensor(value) for value in body.outputs]
        for stack, code in zip(stacks, after[1 + len(carried) :], strict=True):
            writer.lines.append(Line(f"{stack}.append({code})"))
        names, codes = [*variables], after[1 : 1 + len(carried)]
        if heading.startswith("while"):
            names, codes = [goes_on, *names, counter], [after[0], *codes, f"{counter} + 1"]
        if names:
            writer.lines.append(assign(names, ", ".join(codes)))

    block = writer.block(write)
    writer.lines.append(Line(heading, block=block))
    writer.values.update(zip(node.outputs, variables, strict=False))
    for value, stack, each in zip(node.outputs[len(carried) :], stacks, body.outputs[1 + len(carried) :], strict=True):
        _collect(writer, value, stack, each, axis=0)


def write_scan(writer: Writer, node: ir.Node) -> None:
    """Write a `for` over slices of the scanned inputs."""
    if writer.version(node) < 9:
        raise UnsupportedModel("Scan with a batch axis (operator set 8) is not supported", where=title(node))
    body = node.attributes["body"].as_graph()
    count = node.attributes["num_scan_inputs"].as_int()
    states = len(node.inputs) - count
    axes = node.attributes.get_ints("scan_input_axes", [0] * count)
    directions = node.attributes.get_ints("scan_input_directions", [0] * count)
    variables = [writer.make(value) for value in body.inputs[:states]]
    for variable, value in zip(variables, node.inputs, strict=False):
        writer.lines.append(assign([variable], writer.tensor(value)))
    results = list(node.outputs[states:])
    stacks = [writer.name(f"{value.name}_all") for value in results]
    writer.lines.extend(assign([stack], "[]") for stack in stacks)
    slices = [writer.make(value) for value in body.inputs[states:]]
    scanned = [
        f"{writer.tensor(value)}.{f'flip({axis}).' if direction else ''}unbind({axis})"
        for value, axis, direction in zip(node.inputs[states:], axes, directions, strict=True)
    ]

    def write() -> None:
        writer.nodes(body)
        after = [writer.tensor(value) for value in body.outputs]
        for stack, code in zip(stacks, after[states:], strict=True):
            writer.lines.append(Line(f"{stack}.append({code})"))
        if variables:
            writer.lines.append(assign(variables, ", ".join(after[:states])))

    writer.lines.append(Line(f"for {', '.join(slices)}, in zip({', '.join(scanned)}):", block=writer.block(write)))
    writer.values.update(zip(node.outputs, variables, strict=False))
    output_axes = node.attributes.get_ints("scan_output_axes", [0] * len(results))
    backwards = node.attributes.get_ints("scan_output_directions", [0] * len(results))
    for value, stack, each, axis, back in zip(
        results, stacks, body.outputs[states:], output_axes, backwards, strict=True
    ):
        _collect(writer, value, f"{stack}[::-1]" if back else stack, each, axis)


def write_sequence_map(writer: Writer, node: ir.Node) -> None:
    """Write a `for` over the elements of sequences."""
    body = node.attributes["body"].as_graph()
    first = node.inputs[0]
    variables = [writer.make(value) for value in body.inputs]
    operands = [
        code if isinstance(value.type, ir.SequenceType) else f"[{code}] * len({writer.tensor(first)})"
        for value in node.inputs
        if value is not None
        for code in [writer.tensor(value)]
    ]
    outputs = [writer.make(value) for value in node.outputs]
    writer.lines.extend(assign([name], "[]") for name in outputs)

    def write() -> None:
        writer.nodes(body)
        for name, value in zip(outputs, body.outputs, strict=True):
            writer.lines.append(Line(f"{name}.append({writer.tensor(value)})"))

    writer.lines.append(Line(f"for {', '.join(variables)}, in zip({', '.join(operands)}):", block=writer.block(write)))


def _collect(writer: Writer, value: ir.Value, stack: str, each: ir.Value, axis: int) -> None:
    """Stack what the rounds gave; of no rounds, only type and rank are known."""
    if not is_wanted(value):
        return
    rank = "None" if each.shape is None else str(len(each.shape))
    kind = "None" if each.dtype is None else writer.type_code(each.dtype)
    call = f"{writer.use(collected)}({stack}, axis={axis}, kind={kind}, rank={rank}, device=device)"
    writer.lines.append(assign([writer.make(value)], call))


def _is_true(writer: Writer, value: ir.Value) -> bool:
    host = writer.host(value)
    return host is not None and all(entry is True for entry in host.entries.ravel())


def _stays_true(writer: Writer, result: ir.Value, condition: ir.Value) -> bool:
    """Say whether the body hands its condition on as it was, or as a constant that is true."""
    producer = result.producer()
    while producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
        result = producer.inputs[0]
        producer = result.producer()
    return result is condition or (result.const_value is not None and _is_true(writer, result))


WRITERS: Final[dict[str, Callable[[Writer, ir.Node], None]]] = {
    "If": write_if,
    "Loop": write_loop,
    "Scan": write_scan,
    "SequenceMap": write_sequence_map,
}
