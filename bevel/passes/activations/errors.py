"""What 8 bits do to the output of each layer alone, and to the outputs of the model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, log10, sqrt
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.passes.activations.linear import Writer, plain
from bevel.passes.activations.ranges import reduced
from bevel.passes.activations.sites import Site, at
from bevel.passes.base import Runtime
from bevel.passes.calibration import Feed
from bevel.passes.fitting.layers import DATA, WEIGHT

Array = np.ndarray[Any, Any]

SQUARES = "ReduceSumSquare"


@dataclass(frozen=True)
class Twin:
    """What a layer gives, and what it gives in 8 bits: two values of a model that computes both."""

    plain: ir.Value
    quantized: ir.Value


def own_errors(
    model: ir.Model,
    numbers: Sequence[int],
    feeds: Iterable[Feed],
    runtime: Runtime,
    twins: Callable[[ir.Model, Sequence[Site]], Sequence[Twin]],
) -> dict[int, float]:
    """Return the relative error of each layer's output, in the norm, when it alone computes in 8 bits.

    Everything is computed in ONNX Runtime, in one run a feed; a few numbers come out. `twins` adds the layers in 8 bits
    to a clone.
    """
    if not numbers:
        return {}
    probe = model.clone()
    pairs = twins(probe, at(probe, numbers))
    names, outputs = Names(probe), list[tuple[str, str]]()
    probe.graph.outputs.clear()
    for twin in pairs:
        noise, energy = _difference(probe, twin, names), reduced(probe, SQUARES, twin.plain, names)
        outputs.append((noise.name or "", energy.name or ""))
        probe.graph.outputs.extend((noise, energy))
    sums = np.zeros((len(numbers), 2))
    with runtime.open(probe) as runs:
        for feed in feeds:
            answers = runs.run(feed)
            sums += [[float(answers[name]) for name in each] for each in outputs]
    return {number: _ratio(*each) for number, each in zip(numbers, sums.tolist(), strict=True)}


def _ratio(noise: float, energy: float) -> float:
    if not noise:
        return 0.0
    return sqrt(noise / energy) if energy else inf


def _difference(model: ir.Model, twin: Twin, names: Names) -> ir.Value:
    """Return the sum of the squared differences of two values; the second is computed later."""
    maker = twin.quantized.producer()
    assert maker is not None
    node = ir.node("Sub", [twin.plain, twin.quantized], name=names.free(f"{twin.plain.name}.difference"))
    node.outputs[0].name, node.outputs[0].type = node.name, twin.plain.type
    model.graph.insert_after(maker, node)
    return reduced(model, SQUARES, node.outputs[0], names)


def linear_twins(writer: Writer, found: Sequence[Site]) -> list[Twin]:
    """Add layers whose input, weight, bias and, for convolutions, output are quantized as they will be."""
    return [_linear_twin(writer, site) for site in found]


def _linear_twin(writer: Writer, site: Site) -> Twin:
    data = site.layer.data
    plain_tail, grid = tail_of(site), writer.grids[data.name or ""]
    source = writer.restored(data, grid)
    bias, place = writer.bias(site, grid), site.bias_at
    weight = writer.weight(site)
    after = plain_tail.producer()
    assert after is not None
    value = source
    for node in chain(site, plain_tail):
        inputs = list(node.inputs)
        inputs[DATA if node is site.node else _fed(node, site)] = value
        if node is site.node:
            inputs[WEIGHT] = weight
        if place is not None and place[0] is node:
            inputs[place[1]] = bias
        copy = ir.node(node.op_type, inputs, node.attributes, name=writer.names.free(f"{node.name}.twin"))
        plain(copy)
        value = copy.outputs[0]
        value.name, value.type, value.shape = copy.name, node.outputs[0].type, node.outputs[0].shape
        writer.graph.insert_after(after, copy)
        after = copy
    if site.is_convolution:
        value = writer.pair(value, writer.grids[plain_tail.name or ""], after)
    return Twin(plain_tail, value)


def tail_of(site: Site) -> ir.Value:
    """Return what a layer gives with its bias, and behind the activation function that is taken into the range."""
    if site.addend is not None:
        return site.addend.outputs[0]
    return site.tail if site.is_convolution else site.node.outputs[0]


def chain(site: Site, end: ir.Value) -> list[ir.Node]:
    """Return the nodes from a layer to the one that gives `end`."""
    last = end.producer()
    assert last is not None
    return [site.node] if last is site.node else [site.node, last]


def _fed(node: ir.Node, site: Site) -> int:
    """Return which input of a node a layer feeds."""
    return list(node.inputs).index(site.node.outputs[0])


def decibel(error: float) -> str:
    """Write a relative error as a ratio of signal to noise.

    >>> decibel(0.01)
    '40 dB'
    """
    return f"{-20 * log10(error):.0f} dB" if 0 < error < inf else "no error" if not error else "all noise"
