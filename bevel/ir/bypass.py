"""Let a stream pass residual blocks by: what read their ends reads their starts, and the branches fall away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from bevel.ir.bridge import Bridge
from bevel.ir.canonical.dead import is_used, remove_dead
from bevel.ir.emit import Emitter
from bevel.ir.names import Names
from bevel.ir.repetition import Layer
from bevel.ir.residual import Block


def bypass(model: ir.Model, runs: Sequence[Layer], bridges: Mapping[str, Bridge]) -> None:
    """Pass runs of blocks by, in place; a run with a bridge, by its name, becomes what the bridge computes.

    Runs are in the order of the graph and do not touch. The nodes and weights that only they needed go.
    """
    names = Names(model)
    places = {node: block.places[node] for run in runs for block in run.blocks for node in block.nodes}
    for run in reversed(runs):
        stream, after = run.start, run.blocks[0].end.producer()
        assert after is not None
        if run.name in bridges:
            stream = bridges[run.name].whole(Emitter(model.graph, after, stream, run.name, names), stream, run.axis)
        for block in reversed(run.blocks):  # what others than the next block read of an end reads the stream, too
            redirect(model.graph, block.end, stream, names)
    _remove_unused(model.graph, sorted(places, key=places.__getitem__, reverse=True))
    remove_dead(model)


def redirect(graph: ir.Graph, old: ir.Value, new: ir.Value, names: Names) -> None:
    """Let all that read one value read another; where the old one was an output, a copy of the new one has its name."""
    if old.is_graph_output():
        copy = ir.node("Identity", [new], name=names.free(f"{old.name}.passed"))
        graph.append(copy)
        result = copy.outputs[0]
        result.type, result.shape = old.type, old.shape
        for place, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[place] = result
        result.name, old.name = old.name, names.free(f"{old.name}.dropped")
    old.replace_all_uses_with(new)


def _remove_unused(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Remove nodes, the last ones first; those of other domains too, for nothing reads what they make."""
    for node in nodes:
        if not any(is_used(value) for value in node.outputs):
            graph.remove(node, safe=True)


def mute(model: ir.Model, runs: Sequence[Layer], bridges: Mapping[str, Bridge]) -> None:
    """Multiply what each block of the runs adds to the stream by zero; add what a bridge makes of their start.

    This is what `bypass` is compared with: nothing is left out or removed.
    """
    names = Names(model)
    for run in reversed(runs):  # what an earlier block's readers read changes, and later blocks are among them
        for block in reversed(run.blocks):
            bridge = bridges.get(run.name) if block is run.blocks[0] else None
            _mute(model.graph, block, bridge, names)


def _mute(graph: ir.Graph, block: Block, bridge: Bridge | None, names: Names) -> None:
    """Put `start + 0 * (end - start)` in the place of a block's end, plus what the bridge adds."""
    after, readers = block.end.producer(), tuple(block.end.uses())
    assert after is not None
    emit = Emitter(graph, after, block.start, f"{block.name}.muted", names)
    branch = emit("Sub", block.end, block.start)
    muted = emit("Add", block.start, emit("Mul", branch, emit.constant("zero", 0.0)))
    if bridge is not None:
        muted = emit("Add", muted, bridge.added(emit, block.start, block.axis))
    for node, place in readers:
        node.replace_input_with(place, muted)
    for place, output in enumerate(graph.outputs):
        if output is block.end:
            graph.outputs[place] = muted
            muted.name, block.end.name = block.end.name, muted.name
