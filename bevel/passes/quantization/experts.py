"""Experts of codes: ONNX Runtime's QMoE in the place of MoE.

QMoE always takes a softmax over the experts chosen, unless it is given the weights of all; MoE takes one over all
experts, and adds up what it has chosen as it is or rescaled. Products round activations to 8 bits (accuracy level 4),
without which 4 bits run at half the speed. Measured with ONNX Runtime 1.31: its processor kernel has no third weight,
gates only side by side with what they gate, and no blocks that do not divide the inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.content import content
from bevel.ir.names import Names
from bevel.passes.formats import Format
from bevel.passes.formats.blocks import Axis, finite
from bevel.passes.quantization.forms import BYTE, CODES, SCALE, ZERO, Layout, put, whole
from bevel.passes.quantization.kernels import ACCURACY, MICROSOFT, WIDTHS, Kernel
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]

MOE: Final = "MoE"
FIRST, SECOND, THIRD = 2, 4, 6
# Where QMoE has what MoE has: the router, the weights and their biases; and how many inputs it may have.
PLACES: Final = {0: 0, 1: 1, FIRST: 2, FIRST + 1: 4, SECOND: 5, SECOND + 1: 7}
ZEROS: Final = {2: 11, 5: 12}
SHARES: Final = 14
BLOCKS: Final = (128, 64, 32, 16)
TAKEN: Final = (
    "k",
    "normalize_routing_weights",
    "activation_type",
    "activation_alpha",
    "activation_beta",
    "swiglu_fusion",
    "swiglu_limit",
)
"""The attributes that both have."""


@dataclass(frozen=True, eq=False)
class Experts(Kernel):
    """One weight of all experts, `[experts, outputs, bytes]`; the first that is put in place makes the node a QMoE."""

    @property
    def layout(self) -> Layout:
        """Codes, scales and zero points by expert and output."""
        rows, each = self.target.shape[:2], BYTE // self.whole.bits
        found = {
            CODES: ((*rows, self.inputs // each), ir.DataType.UINT8),
            SCALE: ((*rows, self.pieces), ir.DataType.FLOAT),
        }
        if self.format.zero_bits:
            found[ZERO] = ((*rows, -(-self.pieces // each)), ir.DataType.UINT8)
        return found

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Put codes and scales where the floats were."""
        ((node, place),) = self.target.weight.uses()
        if node.op_type == MOE:
            model.opset_imports.setdefault(MICROSOFT, 1)
            node, place = self._replaced(node, names), PLACES[place]
        node.replace_input_with(place, values[CODES])
        node.replace_input_with(place + 1, values[SCALE])
        if ZERO in values:
            node.replace_input_with(ZEROS[place], values[ZERO])

    def _replaced(self, old: ir.Node, names: Names) -> ir.Node:
        """Return the QMoE that takes the place of a MoE, its weights still floats."""
        inputs: list[ir.Value | None] = [None] * (SHARES + 1)
        for place, value in enumerate(old.inputs):
            if value is not None:
                inputs[PLACES[place]] = value
        router = inputs[1]
        assert router is not None
        if not old.attributes.get_int("normalize_routing_weights", 0):
            inputs[SHARES] = put(old, "Softmax", [router], f"{router.name}.shares", names, axis=-1)
        new = ir.node("QMoE", inputs, domain=MICROSOFT, name=old.name)
        new.attributes.update({name: old.attributes[name] for name in TAKEN if name in old.attributes})
        numbers = {"expert_weight_bits": self.whole.bits, "block_size": self.piece, "accuracy_level": ACCURACY}
        new.attributes.update({name: ir.AttrInt64(name, number) for name, number in numbers.items()})
        new.doc_string = old.doc_string
        new.metadata_props.update(old.metadata_props)
        graph = old.graph
        assert isinstance(graph, ir.Graph)
        ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)
        return new


def experts(target: Target, fmt: Format, axis: Axis, block: int) -> Experts | str:
    """Return the form of a weight of a MoE that QMoE reads, or why there is none."""
    if why := _objection(target):
        return why
    inputs = target.matrix_shape[1]
    wanted = min(block or inputs, inputs)
    piece = next((size for size in BLOCKS if wanted % size == 0 and inputs % size == 0), None)
    if axis != 1 or piece is None:
        return "QMoE has no such blocks"
    numbers = whole(fmt, WIDTHS)
    if numbers is None:
        return f"QMoE has no levels of {fmt.name}"
    return Experts(target, fmt, axis, block, whole=numbers, piece=piece)


def _objection(target: Target) -> str:
    node = target.node
    if node.op_type != MOE:
        return f"no kernel for {node.op_type}"
    if len(node.inputs) > THIRD and node.inputs[THIRD] is not None:
        return "QMoE has no third weight on processors"
    if node.attributes.get_int("use_sparse_mixer", 0):
        return "QMoE chooses experts in another way"
    if target.tensor.dtype is not ir.DataType.FLOAT or target.others:
        return "QMoE takes the place of floats that nothing else reads"
    gated = node.attributes.get_string("activation_type", "relu") == "swiglu"
    if gated and node.attributes.get_int("swiglu_fusion", 0) != 1:
        return "QMoE has gates only side by side with what they gate"
    return ""


def apart(forms: Sequence[Experts]) -> Iterator[Experts]:
    """Yield forms whose node cannot become a QMoE, for it needs both weights, finite, in the same bits and blocks."""
    for form in forms:
        both = [each for each in forms if each.target.node is form.target.node]
        same = len({(each.whole.bits, each.piece, each.format.zero_bits > 0) for each in both}) == 1
        if len(both) != len((FIRST, SECOND)) or not same or not all(_finite(each.target) for each in both):
            yield form


def _finite(target: Target) -> bool:
    with content(target.tensor) as array:
        return finite(array)
