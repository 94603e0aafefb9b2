"""Forms of weights with two thin matrices beside their codes, in half precision.

Beside a kernel, the thin ones are products of their own, and siblings that read the same share the first of them:

    y = kernel(x, codes) + (x down) up

What is floats once it is loaded takes them in then, and costs nothing more: `W = decoded(codes) + down up`.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.formats import Quantized
from bevel.passes.quantization.forms import Form, Layout, Storage, put
from bevel.passes.quantization.kernels import Product
from bevel.passes.quantization.repair import Repaired
from bevel.passes.quantization.standard import Dequantized
from bevel.passes.quantization.tables import Tabled
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]

DOWN, UP = "down", "up"
HALF: Final = ir.DataType.FLOAT16


@dataclass(eq=False)
class Projection:
    """A first thin product that siblings share; the first of them stores its weight and computes it."""

    owner: Target
    output: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class Branched(Form):
    """The form of the codes, and the thin matrices beside it."""

    inner: Form = field(kw_only=True)
    rank: int = field(kw_only=True)
    projection: Projection | None = field(kw_only=True)
    """Where the product is that siblings share; None where the weight itself takes the matrices in."""

    @property
    def stem(self) -> Storage[Any]:
        """The form of the codes."""
        return self.inner

    @property
    def owns(self) -> bool:
        """Whether it has a `down` of its own, or is the first of the siblings that share it."""
        return self.projection is None or self.projection.owner is self.target

    @property
    def layout(self) -> Layout:
        """The tensors of the codes, `up`, and `down` if no sibling has it."""
        size = self.target.matrix_shape
        inputs, outputs = size[self.target.in_axis], size[1 - self.target.in_axis]
        thin = {UP: ((self.rank, outputs), HALF)}
        if self.owns:
            thin[DOWN] = (inputs, self.rank), HALF
        return {**self.inner.layout, **thin}

    def arrays(self, found: Quantized) -> dict[str, Array]:
        """Return what the tensors hold."""
        assert isinstance(found, Repaired)
        thin = {UP: found.up, DOWN: found.down}
        codes = self.inner.arrays(found)
        thin = {part: np.ascontiguousarray(thin[part], np.float16) for part in self.layout if part in thin}
        return {**codes, **thin}

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Add the product of the thin matrices, or what `x` becomes by them; then put the codes in place."""
        if self.projection is None:
            self._inside(model.graph, values, names)
        else:
            self._beside(self.projection, values, names)
        self.inner.wire(model, values, names)

    def _beside(self, projection: Projection, values: Mapping[str, ir.Value], names: Names) -> None:
        node, name = self.target.node, self.target.name
        if projection.output is None:
            data, down = node.inputs[0], self._floats(node, values[DOWN], names)
            assert data is not None
            projection.output = put(node, "MatMul", [data, down], f"{name}.down.product", names)
        up = self._floats(node, values[UP], names)
        more = put(node, "MatMul", [projection.output, up], f"{name}.up.product", names)
        _add(node.outputs[0], more, node, names)

    def _inside(self, graph: ir.Graph, values: Mapping[str, ir.Value], names: Names) -> None:
        target, weight = self.target, self.target.weight
        before = min((use.node for use in weight.uses()), key=list(graph).index)
        factors = [self._floats(before, values[part], names) for part in (DOWN, UP)]
        low = put(before, "MatMul", factors, f"{target.name}.low", names)
        if target.in_axis:
            low = put(before, "Transpose", [low], f"{target.name}.turned", names)
        if len(target.shape) > 2:
            sizes = ir.Tensor(np.array(target.shape, np.int64))
            shape = add_initializer(graph, f"{target.name}.sizes", sizes, names)
            low = put(before, "Reshape", [low, shape], f"{target.name}.shaped", names)
        if target.tensor.dtype is not ir.DataType.FLOAT:
            low = put(before, "Cast", [low], f"{target.name}.rounded", names, to=int(target.tensor.dtype))
        whole = put(before, "Add", [low, low], f"{target.name}.whole", names)
        whole.shape, whole.type = weight.shape, weight.type
        ir.convenience.replace_all_uses_with(weight, whole)
        adding = whole.producer()
        assert adding is not None
        adding.replace_input_with(0, weight)

    def _floats(self, before: ir.Node, value: ir.Value, names: Names) -> ir.Value:
        return put(before, "Cast", [value], f"{value.name}.floats", names, to=int(ir.DataType.FLOAT))


def branched(form: Form, rank: int, projections: MutableMapping[ir.Value, Projection] | None) -> Form:
    """Return a form with thin matrices beside it; without, where they have no place or take as much as the codes do.

    Siblings share what is in `projections`, by what they read; nothing is shared if that is None.
    """
    target = form.target
    if rank >= min(target.matrix_shape) or (target.layer is not None and target.layer.groups > 1):
        return form
    if isinstance(form, Tabled):
        return _worth(_beside(form, rank, None)) or form
    data = target.node.inputs[0]
    if not isinstance(form, Product | Dequantized) or data is None or target.node.attributes.get_float("alpha", 1) != 1:
        return form
    known = {} if projections is None else projections
    found = _worth(_beside(form, rank, known.get(data, Projection(target))))
    if found is None:
        return form
    assert found.projection is not None
    known[data] = found.projection
    return found


def _beside(form: Form, rank: int, projection: Projection | None) -> Branched:
    return Branched(form.target, form.format, form.axis, form.block, inner=form, rank=rank, projection=projection)


def _worth(form: Branched) -> Branched | None:
    """Return a form if it makes a weight smaller, and the thin matrices take less than the codes."""
    small = form.nbytes < min(form.target.tensor.nbytes, 2 * form.inner.nbytes)
    return form if small else None


def _add(value: ir.Value, more: ir.Value, node: ir.Node, names: Names) -> None:
    """Let whoever reads a node's output read the sum of it and more, which takes its name."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    adding = ir.node("Add", [more, more], name=names.free(f"{node.name}.sum"))
    total = adding.outputs[0]
    total.shape, total.type, total.doc_string = value.shape, value.type, value.doc_string
    total.metadata_props.update(value.metadata_props)
    value.replace_all_uses_with(total, replace_graph_outputs=True)
    adding.replace_input_with(0, value)
    total.name, value.name = value.name, None
    value.name = names.free(f"{total.name}.codes")
    graph.insert_after(node, adding)
