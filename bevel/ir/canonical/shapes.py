"""Shapes are inferred symbolically, and shape arithmetic that turns out constant is folded.

What a file declares about its inner values is a hint and may be stale: nothing is folded on its word. It is put back
where inference found less.
"""

import logging
import re
from typing import Final

import onnx_ir as ir
from onnx_shape_inference import SYM_DATA_KEY, OpUsageError, ShapeInferenceError, infer_symbolic_shapes

from bevel.ir.canonical import corrections  # noqa: F401 - importing it corrects the library's inference
from bevel.ir.canonical.control import doubtful_values, type_states
from bevel.ir.canonical.folding import fold_constants
from bevel.ir.canonical.sequences import open_sequences
from bevel.ir.canonical.unread import readable_names

logger = logging.getLogger(__name__)

# All that inference was seen to raise on valid models: it then leaves what it has, and passes do with less.
INFERENCE_ERRORS: Final = (
    ShapeInferenceError,
    OpUsageError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)

MOST_ROUNDS: Final = 4
"""Folding makes shapes known that make more foldable; after so many rounds what is left is left."""

MINTED: Final = re.compile(r"\b_d\d+\b")
"""The names inference gives to sizes it does not know."""

UNNOTED: Final = "bevel.unnoted"
"""Key in `graph.meta` of a model whose file says nothing of inner values: what is inferred is not for its file."""

Hints = dict[ir.Value, ir.Shape]
Dim = int | ir.SymbolicDim


def resolve_shapes(model: ir.Model) -> None:
    """Infer all shapes, fold what is constant, then take from the file's own declarations what is still missing."""
    hints = take_declared(model)
    derived: set[ir.Value] = set()
    for _ in range(MOST_ROUNDS):
        infer_shapes(model)
        changes = [fold_constants(model, derived), open_sequences(model)]
        if not any(changes) or is_resolved(model):
            break
    forget_contents(model)
    apply_hints(hints)
    if hints and not is_resolved(model):
        infer_shapes(model)
        forget_contents(model)
        apply_hints(hints)


def infer_shapes(model: ir.Model) -> None:
    """Infer the shapes of all values from those they have; what cannot be inferred stays unknown.

    The contents that inference finds for shape tensors are left in `const_value`.
    """
    type_states(model)
    try:
        with readable_names(model):
            infer_symbolic_shapes(model, warn_on_missing=False)
    except INFERENCE_ERRORS as error:
        logger.info("shapes stay incomplete: %s", error)
    for value in doubtful_values(model.graph):
        value.shape = None
        value.const_value = None


def take_declared(model: ir.Model) -> Hints:
    """Take away the shapes declared for what nodes produce and what bodies of loops are given.

    Names of sizes stay on outputs, so that inference uses them.
    """
    hints: Hints = {}
    for graph in model.graphs():
        inputs = () if graph is model.graph else graph.inputs
        for value in (*inputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None:
                hints[value] = value.shape
                value.shape = names_only(value.shape) if value.is_graph_output() else None
    return hints


def is_resolved(model: ir.Model) -> bool:
    """Tell whether every value that a node computes has a shape."""
    return all(value.shape is not None for graph in model.graphs() for node in graph for value in node.outputs)


def apply_hints(hints: Hints) -> None:
    """Put declared shapes where inference found none, and declared sizes where it found less."""
    for value, shape in hints.items():
        value.shape = shape if value.shape is None else refined(value.shape, shape)


def names_only(shape: ir.Shape) -> ir.Shape:
    """Keep the rank and the names, not the numbers.

    >>> names_only(ir.Shape(["batch", 10]))
    Shape([SymbolicDim('batch'), SymbolicDim(None)])
    """
    return ir.Shape([ir.SymbolicDim(None) if isinstance(dim, int) else dim for dim in shape])


def refined(inferred: ir.Shape, declared: ir.Shape) -> ir.Shape:
    """Fill the sizes that inference could only number with what the file declares."""
    if len(inferred) != len(declared):
        return inferred
    return ir.Shape([known_dim(mine, theirs) for mine, theirs in zip(inferred, declared, strict=True)])


def known_dim(inferred: Dim, declared: Dim) -> Dim:
    """Prefer the inferred size, unless it is unknown and the declared one is not."""
    if isinstance(inferred, int) or not is_anonymous(inferred):
        return inferred
    return inferred if isinstance(declared, ir.SymbolicDim) and declared.value is None else declared


def is_anonymous(dim: ir.SymbolicDim) -> bool:
    """Tell whether a size has no name but the one inference gave it."""
    return dim.value is None or MINTED.fullmatch(dim.value) is not None


def forget_minted_names(model: ir.Model) -> None:
    """Make sizes unknown again that only inference has named, as they were in the file."""
    for graph in model.graphs():
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None and any(MINTED.search(str(dim)) for dim in value.shape):
                value.shape = ir.Shape([None if MINTED.search(str(dim)) else dim for dim in value.shape])


def forget_contents(model: ir.Model) -> None:
    """Remove inference's notes on the contents of values, which would otherwise be saved or go stale."""
    for graph in model.graphs():
        for value in (value for node in graph for value in node.outputs):
            value.const_value = None
            value.metadata_props.pop(SYM_DATA_KEY, None)
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.pop(SYM_DATA_KEY, None)
