"""Let blocks use the weights of others: two initializers become one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from bevel.ir.canonical.dead import remove_unused_initializers
from bevel.ir.provenance import provenance, set_provenance
from bevel.ir.record import cuts
from bevel.ir.repetition import Layer, chains
from bevel.ir.residual import Weight


def models_of(layers: Sequence[Layer]) -> dict[Layer, Layer]:
    """Return, for each layer that has one, the nearest earlier layer of its kind on the same stream."""
    blocks = [block for layer in layers for block in layer.blocks]
    streams = {block: place for place, chain in enumerate(chains(blocks)) for block in chain}
    latest: dict[tuple[int, object], Layer] = {}
    found: dict[Layer, Layer] = {}
    for layer in layers:
        key = (streams[layer.blocks[0]], layer.kind)
        if key in latest and any(layer.kind) and list(_distinct(layer, latest[key])):
            found[layer] = latest[key]
        latest[key] = layer
    return found


def first_of(layer: Layer, sharing: Mapping[Layer, Layer]) -> Layer:
    """Return the layer whose weights a layer uses in the end, where the one that it follows follows another."""
    while layer in sharing:
        layer = sharing[layer]
    return layer


def share(model: ir.Model, pairs: Iterable[tuple[Layer, Layer]]) -> None:
    """Let the first layer of each pair use the matrices of the second, in place; vectors stay its own."""
    for layer, other in pairs:
        for mine, theirs in _distinct(layer, other):
            _unite_names(theirs.value, mine.value)
            mine.node.replace_input_with(mine.operand, theirs.value)
    remove_unused_initializers(model.graph)


def _distinct(layer: Layer, other: Layer) -> Iterator[tuple[Weight, Weight]]:
    """Yield the weights of two layers that stand at the same places, and are not one already."""
    for mine_of, theirs_of in zip(layer.blocks, other.blocks, strict=True):
        for mine, theirs in zip(mine_of.weights, theirs_of.weights, strict=True):
            if mine.value is not theirs.value:
                yield mine, theirs


def _unite_names(kept: ir.Value, dropped: ir.Value) -> None:
    """Note that one initializer is two parameters of a module now, where both came from it in the same way."""
    ours, theirs = provenance(kept), provenance(dropped)
    if ours is None or theirs is None or ours.transforms != theirs.transforms or not _same_cuts(kept, dropped):
        return
    set_provenance(kept, replace(ours, names=tuple(dict.fromkeys((*ours.names, *theirs.names)))))


def _same_cuts(left: ir.Value, right: ir.Value) -> bool:
    mine, theirs = cuts(left), cuts(right)
    return mine.keys() == theirs.keys() and all(cut.same(theirs[axis]) for axis, cut in mine.items())
