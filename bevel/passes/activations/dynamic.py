"""Products in 8 bits whose input is quantized by its own extremes at run time, in standard operators.

ONNX Runtime 1.31 makes one kernel of them where an input has one reader, and is as fast where several share it. The
input's scale is of the whole tensor: what one row gives depends on the others a little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.dead import remove_dead
from bevel.passes.activations.errors import Twin
from bevel.passes.activations.grids import Coded
from bevel.passes.activations.linear import Writer, hand_over
from bevel.passes.activations.sites import Site
from bevel.passes.fitting.layers import GEMM

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Products:
    """Writes products of layers into a model; every input is quantized once."""

    model: ir.Model
    weights: Mapping[int, Coded]
    _writer: Writer = field(init=False)
    _codes: dict[ir.Value, tuple[ir.Value, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._writer = Writer(self.model, {}, self.weights)

    def write(self, found: Sequence[Site]) -> None:
        """Put products in 8 bits in the places of layers."""
        for site in found:
            node, result = site.node, self.product(site)
            hand_over(self.model.graph, node.outputs[0], result)
            self.model.graph.remove(node, safe=True)
        remove_dead(self.model)

    def twins(self, found: Sequence[Site]) -> list[Twin]:
        """Add products in 8 bits beside layers."""
        return [Twin(site.node.outputs[0], self.product(site)) for site in found]

    def product(self, site: Site) -> ir.Value:
        """Put what a layer computes behind it, in 8 bits."""
        coded, name, shape = self.weights[site.number], site.name, site.node.outputs[0].shape
        codes, scale, zero = self._quantized(site.layer.data)
        matrix = self._writer.constant(
            f"{name}.codes", coded.codes if coded.axis else np.ascontiguousarray(coded.codes.T), share=True
        )
        step = self._writer.constant(f"{name}.scale", coded.scale, share=True)
        whole = self._node("MatMulInteger", [codes, matrix, zero], f"{name}.whole", shape, ir.DataType.INT32)
        wide = self._node("Cast", [whole], f"{name}.wide", shape, to=ir.DataType.FLOAT)
        scales = self._node("Mul", [scale, step], f"{name}.scales", step.shape)
        made = [whole, wide, scales, self._node("Mul", [wide, scales], f"{name}.product", shape)]
        addend = self._addend(site)
        if addend is not None:
            made.append(self._node("Add", [made[-1], addend], f"{name}.sum", shape))
        self._writer.insert(site.node, *made)
        return made[-1]

    def _quantized(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """Return the codes, scale and zero point of a value; they are computed right behind it."""
        if value not in self._codes:
            node = ir.node(
                "DynamicQuantizeLinear",
                [value],
                num_outputs=3,
                name=self._writer.names.free(f"{value.name}.quantized"),
            )
            kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
            shapes = (value.shape, ir.Shape([]), ir.Shape([]))
            parts = ("codes", "scale", "zero")
            for output, part, kind, shape in zip(node.outputs, parts, kinds, shapes, strict=True):
                output.name = self._writer.names.free(f"{value.name}.{part}")
                output.type, output.shape = ir.TensorType(kind), shape
            self._writer.insert(value.producer(), node.outputs[0])
            self._codes[value] = tuple(node.outputs)
        return self._codes[value]

    def _addend(self, site: Site) -> ir.Value | None:
        """Return what a Gemm adds."""
        if site.node.op_type != GEMM or site.layer.bias is None:
            return None
        if site.node.attributes.get_float("beta", 1.0) == 1.0:
            return site.layer.bias
        return self._writer.constant(f"{site.name}.bias", np.ascontiguousarray(site.bias))

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        shape: ir.Shape | None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: int,
    ) -> ir.Value:
        return self._writer.node(op_type, inputs, name, shape, dtype, **attributes)
