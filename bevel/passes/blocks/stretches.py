"""Which blocks or layers of a model a pass works on, and what it says about the others."""

from collections.abc import Iterator, Sequence
from typing import Literal

from bevel.errors import EditRefused, UsageError, nearest
from bevel.ir.repetition import Layer, layers, singles
from bevel.ir.residual import Blocks
from bevel.passes.patterns import asked

Unit = Literal["block", "layer"]

MOST_REASONS = 5


def wanted(blocks: Blocks, unit: Unit, only: Sequence[str], skip: Sequence[str], where: str) -> list[Layer]:
    """Return the blocks or layers that patterns ask for: by their names, or those of their nodes and tensors.

    Blocks that hold others are left out. Raises `EditRefused` for a model without blocks, `UsageError` for patterns
    that match none.
    """
    if not blocks.innermost:
        why = f"{blocks.refused[0].add.name!r} is none: {blocks.refused[0].why}" if blocks.refused else ""
        raise EditRefused(
            "the model has no residual blocks, sums of a stream and what is computed from it", where=where, remedy=why
        )
    found = layers(blocks.innermost) if unit == "layer" else singles(blocks.innermost)
    names = {layer: set(_names(layer)) for layer in found}
    taken = [layer for layer in found if asked(names[layer], only, skip)]
    if not taken:
        raise UsageError(
            f"no {unit} is asked for", where=where, remedy=nearest(" ".join(only), [layer.name for layer in found])
        )
    return taken


def _names(layer: Layer) -> Iterator[str]:
    yield layer.name
    for block in layer.blocks:
        yield block.name
        for node in block.nodes:
            yield node.name or ""
            yield from (value.name or "" for value in node.inputs if value is not None)


def refusals(blocks: Blocks) -> list[str]:
    """Say which sums were almost blocks, and why they are none."""
    lines = [f"left alone: {add.name or add.outputs[0].name}: {why}" for add, why in blocks.refused[:MOST_REASONS]]
    rest = len(blocks.refused) - MOST_REASONS
    return [*lines, f"{rest} more sums are no blocks for such reasons"] if rest > 0 else lines
