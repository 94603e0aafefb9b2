"""The one form that frontends give and passes rely on.

After `canonicalize`:

* every constant is an initializer of the graph that uses it, with `const_value` set, unless it is a graph's output;
* no initializer of the main graph is listed as an input only because an old file format asked for it;
* a vector or scalar initializer has one use, and so has shape arithmetic with constants in it: nothing is tied by an
  exporter's habit. Matrices and larger stay tied, and so does what is known to be one parameter of a module;
* shapes are as far inferred as possible, symbolically, and shape arithmetic that is constant is folded;
* what a Range is given is a scalar;
* no dead node is left of what was folded;
* no two nodes of a graph have one name;
* other names, doc strings, metadata, opset imports, graph inputs and outputs are what they were.

What the model computes is unchanged, bit for bit.
"""

from collections.abc import Callable
from typing import Final, Literal

import onnx_ir as ir

from bevel.ir.canonical.arithmetic import separate_arithmetic
from bevel.ir.canonical.constants import drop_listed_initializers, lift_constants
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.canonical.functions import inline_functions
from bevel.ir.canonical.naming import name_nodes_apart
from bevel.ir.canonical.scalars import settle_scalars
from bevel.ir.canonical.shapes import resolve_shapes
from bevel.ir.canonical.sharing import lift_identities, separate_shared

__all__ = ["Functions", "canonicalize"]

Functions = Literal["inline", "keep"]

STEPS: Final[tuple[Callable[[ir.Model], None], ...]] = (
    name_nodes_apart,
    drop_listed_initializers,
    lift_constants,
    lift_identities,
    resolve_shapes,
    settle_scalars,
    remove_dead,
    separate_arithmetic,
    separate_shared,
)


def canonicalize(model: ir.Model, *, functions: Functions = "inline") -> None:
    """Bring the model into canonical form, in place; the nodes must be in topological order."""
    if functions == "inline":
        inline_functions(model)
    for step in STEPS:
        step(model)
