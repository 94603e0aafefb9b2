"""Run a model piece by piece on many inputs, so that what a later piece is may depend on what an earlier one gave.

Every node runs once on every feed; what is computed from weights alone (transposed, dequantized) runs with each piece
that takes it, since weights may change on the way. Only the values that are still needed are kept: one cut through the
graph, never the whole of its activations.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.piece import uses
from bevel.passes.base import Runtime

Array = np.ndarray[Any, Any]


class Walk:
    """A model on its way through its own graph; nodes are read when it gets to them, so they may be changed before."""

    def __init__(self, model: ir.Model, feeds: Iterable[Mapping[str, Any]], runtime: Runtime) -> None:
        self._model = model
        self._runtime = runtime
        self._nodes = list(model.graph)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._last = _last_uses(self._nodes)
        self._fixed = _of_weights(self._nodes)
        self._done = 0
        self._overridden: dict[ir.Value, ir.TensorProtocol] = {}
        self._feeds: list[dict[ir.Value, Any]] = [_given(model, feed) for feed in feeds]

    def reach(self, node: ir.Node) -> None:
        """Run everything that stands before `node`, in the order of the graph."""
        place = self._place[node]
        if place <= self._done:
            return
        piece, self._done = self._nodes[self._done : place], place
        self._run(piece)

    def override(self, value: ir.Value, array: Array) -> None:
        """Let an initializer have another content on this walk; the model keeps its own."""
        assert value.const_value is not None
        self._overridden[value] = ir.tensor(array.astype(value.const_value.dtype.numpy()), name=value.name)

    def values(self, value: ir.Value) -> Iterator[Array]:
        """Yield a value that the node reached takes, feed by feed."""
        if value.producer() in self._fixed:
            return self._constant(value)
        return (feed[value] for feed in self._feeds)

    def ahead(self, value: ir.Value) -> Iterator[Array]:
        """Yield what a value that is still to come would be, feed by feed; the walk stays where it is."""
        return self._constant(value) if value.producer() in self._fixed else self._computed(value)

    def _computed(self, value: ir.Value) -> Iterator[Array]:
        model, feeds = self.stretch(value)
        with self._runtime.open(model) as runs:
            for feed in feeds:
                yield runs.run(feed)[value.name or ""]

    def stretch(self, value: ir.Value) -> tuple[ir.Model, list[dict[str, Any]]]:
        """Return what leads from here to a value that is still to come, as a model, and what it is given, by feed."""
        needed: set[ir.Node] = set()
        pending = [value]
        while pending:
            maker = pending.pop().producer()
            if (
                maker is not None
                and maker not in needed
                and maker not in self._fixed
                and self._place[maker] >= self._done
            ):
                needed.add(maker)
                pending.extend(uses(maker))
        piece = sorted(needed, key=self._place.__getitem__)
        taken = [each for node in piece for each in uses(node)]
        model, inputs = self._piece([*self._makers(taken), *piece], [value])
        return model, [{each.name or "": feed[each] for each in inputs if each in feed} for feed in self._feeds]

    def _constant(self, value: ir.Value) -> Iterator[Array]:
        """Yield what is computed from weights alone, as they are now, feed by feed."""
        model, _ = self._piece(self._makers([value]), [value])
        with self._runtime.open(model) as runs:
            array: Array = runs.run({})[value.name or ""]
        yield from [array] * len(self._feeds)

    def _run(self, piece: list[ir.Node]) -> None:
        """Run some nodes on every feed, and keep what later ones take."""
        piece = [node for node in piece if node not in self._fixed]
        wanted = [
            value for node in piece for value in node.outputs if self._last.get(value, -1) >= self._done and value.name
        ]
        if wanted:
            taken = [value for node in piece for value in uses(node)]
            model, inputs = self._piece([*self._makers(taken), *piece], wanted)
            with self._runtime.open(model) as runs:
                for feed in self._feeds:
                    given = {value.name or "": feed[value] for value in inputs if value in feed}
                    answers = runs.run(given)
                    feed.update((value, answers[value.name or ""]) for value in wanted)
                    self._forget(feed)
        else:
            for feed in self._feeds:
                self._forget(feed)

    def _makers(self, taken: list[ir.Value]) -> list[ir.Node]:
        """Return the nodes that compute some values from weights alone, in the order of the graph."""
        needed: set[ir.Node] = set()
        pending = list(taken)
        while pending:
            maker = pending.pop().producer()
            if maker is not None and maker in self._fixed and maker not in needed:
                needed.add(maker)
                pending.extend(uses(maker))
        return sorted(needed, key=self._place.__getitem__)

    def _forget(self, feed: dict[ir.Value, Any]) -> None:
        for value in [value for value in feed if self._last.get(value, -1) < self._done]:
            del feed[value]

    def _piece(self, piece: list[ir.Node], wanted: list[ir.Value]) -> tuple[ir.Model, list[ir.Value]]:
        """Return some nodes as a model of their own, and the values of this one that it takes."""
        taken = list(dict.fromkeys(value for node in piece for value in uses(node)))
        made = {value for node in piece for value in node.outputs}
        weights = [value for value in taken if _is_weight(value)]
        known = set(weights)
        inputs = [value for value in taken if value not in made and value not in known]
        graph = self._model.graph
        view = ir.GraphView(
            inputs, wanted, nodes=piece, initializers=weights, opset_imports=graph.opset_imports, name=graph.name
        )
        copy = view.clone()
        for value in weights:
            if value in self._overridden:
                copy.initializers[value.name or ""].const_value = self._overridden[value]
        for mine, value in zip(copy.inputs, inputs, strict=True):
            _retype(mine, [feed[value] for feed in self._feeds if value in feed])
        model = ir.Model(copy, ir_version=self._model.ir_version, functions=list(self._model.functions.values()))
        return model, inputs


def _of_weights(nodes: list[ir.Node]) -> set[ir.Node]:
    """Return the nodes that take nothing but weights and what is computed from weights."""
    found: set[ir.Node] = set()
    for node in nodes:
        taken = list(uses(node))
        if taken and all(_is_weight(value) or value.producer() in found for value in taken):
            found.add(node)
    return found


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()


def _last_uses(nodes: list[ir.Node]) -> dict[ir.Value, int]:
    last: dict[ir.Value, int] = {}
    for place, node in enumerate(nodes):
        for value in uses(node):
            last[value] = place
    return last


def _given(model: ir.Model, feed: Mapping[str, Any]) -> dict[ir.Value, Any]:
    """Return a feed by the values it is for; an input with a default that is left out has that."""
    given: dict[ir.Value, Any] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if feed.get(name) is not None:
            given[value] = feed[name]
        elif value.const_value is not None:
            given[value] = value.const_value.numpy()
    return given


def _retype(value: ir.Value, samples: list[Any]) -> None:
    """Give an input of a piece the type of what it is given, and no sizes: those differ from feed to feed."""
    first = next(iter(samples), None)
    if not isinstance(first, np.ndarray):
        return
    value.shape = ir.Shape([None] * first.ndim)
    if value.type is None:
        value.type = ir.TensorType(ir.DataType.from_numpy(first.dtype))
