"""QuantizeLinear and DequantizeLinear around layers, in the forms that ONNX Runtime computes in 8 bits.

Found by loading models in ONNX Runtime 1.31: a Conv needs its output quantized behind a Relu or Clip that the range
implies; a Gemm needs its bias in 32 bits at the product of both scales, a MatMul of rank 2 with an Add behind it as
well, for ONNX Runtime makes a Gemm of them first; a Gemm needs alpha = beta = 1, and zero points for its weight. A
MatMul gives floats without a detour. Sum is not known in 8 bits, Add is.

A layer with float weights that reads a DequantizeLinear and gives to a QuantizeLinear is quantized by ONNX Runtime on
its own when it loads the model, with one scale for the whole weight. Where a layer is to stay in floats, what it gives
is clipped to ends that the grid reaches beyond; such a clipping is not dropped, and costs nothing as part of the layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.dead import remove_dead
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.activations.grids import Coded, Grid, bias_codes
from bevel.passes.activations.sites import CLIP, Site, clipping, stored
from bevel.passes.fitting.layers import CONV, CONV_TRANSPOSE, DATA, GEMM, MATMUL, WEIGHT

Array = np.ndarray[Any, Any]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
LAYERS: Final = frozenset({CONV, CONV_TRANSPOSE, GEMM, MATMUL})


@dataclass(eq=False)
class Writer:
    """Writes quantized values into a model; every weight and every value is quantized once."""

    model: ir.Model
    grids: Mapping[str, Grid]
    weights: Mapping[int, Coded]
    names: Names = field(init=False)
    _restored: dict[ir.Value, ir.Value] = field(default_factory=dict, init=False)
    _constants: dict[tuple[str, bytes], ir.Value] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.names = Names(self.model)

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    def write(self, found: Sequence[Site]) -> None:
        """Let layers compute in 8 bits, and what lies between them stay in 8 bits."""
        roots = stored(self.model, found)
        data = {site.number: site.layer.data.name or "" for site in found}
        grids = {value: self.grids[root.name or ""] for value, root in roots.items()}
        for site in found:
            self._layer(site, self.grids[data[site.number]] if site.layer.data not in grids else grids[site.layer.data])
        for value, grid in grids.items():
            self._store(value, grid)
        for site in found:
            read = site.layer.data
            if read not in self._restored.values():
                site.node.replace_input_with(DATA, self.restored(read, self.grids[data[site.number]]))
        remove_dead(self.model)

    def restored(self, value: ir.Value, grid: Grid) -> ir.Value:
        """Return a value as it is after quantization, by a pair of nodes right behind it."""
        if value not in self._restored:
            clipped = self._clipped(value, grid) if _stays_float(value) else value
            loose = grid if clipped is value and not _stays_float(value) else grid.looser
            self._restored[value] = self.pair(clipped, loose, clipped.producer())
        return self._restored[value]

    def pair(self, value: ir.Value, grid: Grid, after: ir.Node | None) -> ir.Value:
        """Put QuantizeLinear and DequantizeLinear behind a node, or first of all."""
        scale = self.constant(f"{value.name}.scale", np.float32(grid.scale))
        zero = self.constant(f"{value.name}.zero", np.uint8(grid.zero))
        codes = self.node(QUANTIZE, [value, scale, zero], f"{value.name}.quantized", value.shape, ir.DataType.UINT8)
        back = self.node(DEQUANTIZE, [codes, scale, zero], f"{value.name}.restored", value.shape, ir.DataType.FLOAT)
        self.insert(after, codes, back)
        return back

    def weight(self, site: Site) -> ir.Value:
        """Return a layer's weight, restored from its codes, in front of its node."""
        coded, name = self.weights[site.number], site.name
        codes = self.constant(f"{name}.codes", coded.codes, share=True)
        scale = self.constant(f"{name}.scale", coded.scale, share=True)
        zero = self.constant(f"{name}.zero", np.zeros(len(coded.scale), np.int8), share=True)
        back = self.node(
            DEQUANTIZE, [codes, scale, zero], f"{name}.restored", codes.shape, ir.DataType.FLOAT, axis=coded.axis
        )
        assert back.producer() is not None
        self.graph.insert_before(site.node, _maker(back))
        return back

    def bias(self, site: Site, grid: Grid) -> ir.Value | None:
        """Return a layer's bias, restored from 32 bits, in front of its node; None if it has none of that kind."""
        bias = site.bias
        if bias is None:
            return None
        scale = np.float32(grid.scale) * self.weights[site.number].scale
        codes = self.constant(f"{site.name}.bias", bias_codes(bias, scale))
        steps = self.constant(f"{site.name}.bias.scale", scale)
        back = self.node(
            DEQUANTIZE, [codes, steps], f"{site.name}.bias.restored", codes.shape, ir.DataType.FLOAT, axis=0
        )
        self.graph.insert_before(site.node, _maker(back))
        return back

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        shape: ir.Shape | None,
        dtype: ir.DataType,
        **attributes: int,
    ) -> ir.Value:
        """Return the output of a new node that stands nowhere yet."""
        node = ir.node(op_type, inputs, attributes, name=self.names.free(name))
        output = node.outputs[0]
        output.name, output.shape, output.type = node.name, shape, ir.TensorType(dtype)
        return output

    def insert(self, after: ir.Node | None, *values: ir.Value) -> None:
        """Put the nodes of values behind one, or first of all."""
        nodes = [_maker(value) for value in values]
        if after is not None:
            self.graph.insert_after(after, nodes)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.extend(nodes)

    def constant(self, name: str, array: Any, *, share: bool = False) -> ir.Value:
        """Return an initializer; with `share`, the one that has this content under this name already."""
        key = name, np.asarray(array).tobytes() if share else b""
        if not share or key not in self._constants:
            self._constants[key] = add_initializer(self.graph, name, ir.tensor(np.asarray(array)), self.names)
        return self._constants[key]

    def _clipped(self, value: ir.Value, grid: Grid) -> ir.Value:
        """Return what a layer in floats gives, clipped to a grid; where something clips it already, as it is."""
        maker = value.producer()
        if clipping(maker) is not None:
            return value
        low, high = (
            self.constant(f"{value.name}.{end}", np.float32(bound))
            for end, bound in zip(("low", "high"), grid.ends, strict=True)
        )
        clipped = self.node(CLIP, [value, low, high], f"{value.name}.clipped", value.shape, ir.DataType.FLOAT)
        self.insert(maker, clipped)
        return clipped

    def _layer(self, site: Site, grid: Grid) -> None:
        """Give a layer its weight and bias in whole numbers."""
        place, bias = site.bias_at, self.bias(site, grid)
        if place is not None and bias is not None:
            place[0].replace_input_with(place[1], bias)
        site.node.replace_input_with(WEIGHT, self.weight(site))
        plain(site.node)

    def _store(self, value: ir.Value, grid: Grid) -> None:
        """Let every reader of a value, and who runs the model, have it as it is after quantization."""
        readers = list(value.uses())
        back = self.restored(value, grid)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, back)
        if value.is_graph_output():
            name = value.name
            give_out(self.graph, value, back)
            value.name, back.name = self.names.free(f"{name}.float"), name


def _stays_float(value: ir.Value) -> bool:
    """Say whether a layer with float weights gives a value that it computes from a quantized one."""
    node = value.producer()
    if clipping(node) is not None:
        node = None if node is None or node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.domain or node.op_type not in LAYERS:
        return False
    read, weight = (value if value is None else value.producer() for value in node.inputs[:2])
    return _restores(read) and not _restores(weight)


def _restores(node: ir.Node | ir.Value | None) -> bool:
    return isinstance(node, ir.Node) and node.op_type == DEQUANTIZE


def give_out(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let a graph give out one value in the place of another."""
    for place, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[place] = new


def hand_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let everybody who reads a value read another in its place, which gets its name."""
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    give_out(graph, old, new)
    new.name, old.name = old.name, None


def plain(node: ir.Node) -> None:
    """Take from a Gemm the factors that are in its weight and bias now."""
    if node.op_type == GEMM:
        for factor in ("alpha", "beta"):
            node.attributes.pop(factor, None)


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
