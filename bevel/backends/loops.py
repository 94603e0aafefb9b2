"""Loops that never end, told before ONNX Runtime runs them: nothing stops a run there, not even Ctrl-C."""

from typing import Final

import onnx_ir as ir

from bevel.backends.chance import called
from bevel.errors import UnsupportedModel
from bevel.ir.canonical.constants import constant_of

UNBOUNDED: Final = 2**40
"""Trips; so many take days, however little there is to do in each, and exporters write 2**63 - 1 for no bound."""


def refuse_endless(model: ir.Model) -> None:
    """Raise `UnsupportedModel` for a loop whose trips have no bound and whose condition never changes from true."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if _is_endless(node):
            raise UnsupportedModel(
                "loops forever: its trips have no bound, and its condition stays true",
                where=called(node),
                remedy="give the loop a trip count, or a condition that changes; or skip the check with --no-verify",
            )


def _is_endless(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Loop"):
        return False
    trips, start = (_number(value) if value is not None else UNBOUNDED for value in node.inputs[:2])
    if trips is None or trips < UNBOUNDED:
        return False
    body = node.attributes["body"].as_graph()
    goes_on = _origin(body.outputs[0])
    return bool(start if goes_on is body.inputs[1] else _number(goes_on))


def _origin(value: ir.Value) -> ir.Value:
    """Return what identities hand on."""
    node = value.producer()
    while node is not None and (node.domain, node.op_type) == ("", "Identity") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _number(value: ir.Value) -> int | None:
    """Return a constant of one element; None for what is no constant."""
    origin = _origin(value)
    node = origin.producer()
    tensor = origin.const_value if node is None else constant_of(node)
    return int(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None
