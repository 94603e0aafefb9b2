"""How long the analysis takes: against the number of nodes, and against the width.

    python benchmarks/analysis.py [--nodes 20000]

Prints milliseconds a node at growing sizes, the straight line through them with its fit, and the time of the same
graph 100 times as wide. Weights are never read: each is one zero, broadcast.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bevel.ir.groups import analyse

WIDTH, LENGTH, HEADS = 64, 16, 4
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000, help="size of the largest graph")
    largest = parser.parse_args().nodes
    for name, chain in CHAINS.items():
        scaling(name, chain, largest)
        widths(name, chain, largest // 20)


def scaling(name: str, chain: Callable[["Builder"], None], largest: int) -> None:
    sizes, times = [], []
    for part in (0.05, 0.1, 0.25, 0.5, 1.0):
        model = build(chain, int(largest * part))
        sizes.append(len(model.graph))
        times.append(seconds(model))
        print(f"{name:<10} {sizes[-1]:>6} nodes  {times[-1]:7.2f} s  {times[-1] / sizes[-1] * 1000:.4f} ms a node")
    slope, offset = np.polyfit(sizes, times, 1)
    fit = np.corrcoef(sizes, times)[0, 1] ** 2
    print(f"{name:<10} {slope * 1000:.4f} ms a node {offset * 1000:+.1f} ms, R2 = {fit:.5f}")


def widths(name: str, chain: Callable[["Builder"], None], nodes: int) -> None:
    narrow, wide = (seconds(build(chain, nodes, width)) for width in (WIDTH, 100 * WIDTH))
    print(f"{name:<10} {nodes} nodes, 100 times as wide: {wide / narrow:.2f} times as long\n")


def seconds(model: ir.Model) -> float:
    """The best of a few runs, each on its own clone."""
    return min(timed(model.clone()) for _ in range(REPEATS))


def timed(model: ir.Model) -> float:
    start = time.perf_counter()
    found = analyse(model).groups
    taken = time.perf_counter() - start
    assert found, "a benchmark of an analysis that finds nothing would say nothing"
    return taken


def build(chain: Callable[["Builder"], None], nodes: int, width: int = WIDTH) -> ir.Model:
    builder = Builder(width)
    while len(builder.nodes) < nodes:
        chain(builder)
    return builder.model()


class Builder:
    """A graph under construction: `x` is the latest value, shapes are known, as in canonical form."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.input = self.x = value("x", ["batch", LENGTH, width])

    def node(self, op: str, inputs: list[ir.Value], shape: list[int | str], **attributes: object) -> ir.Value:
        output = value(f"v{len(self.nodes)}", shape)
        self.nodes.append(ir.node(op, inputs, attributes, outputs=[output], name=f"n{len(self.nodes)}"))
        return output

    def weight(self, *shape: int) -> ir.Value:
        content = np.broadcast_to(np.float32(0), shape)
        return self.constant(ir.Tensor(content))

    def numbers(self, *content: int) -> ir.Value:
        return self.constant(ir.tensor(list(content), dtype=ir.DataType.INT64))

    def constant(self, tensor: ir.Tensor) -> ir.Value:
        name = f"w{len(self.weights)}"
        held = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.weights.append(held)
        return held

    def model(self) -> ir.Model:
        graph = ir.Graph(
            [self.input], [self.x], nodes=self.nodes, initializers=self.weights, opset_imports={"": 18}, name="chain"
        )
        return ir.Model(graph, ir_version=10)


def value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def feed_forward(at: Builder) -> None:
    """LayerNormalization, up, bias, ReLU, down, bias, shortcut: 7 nodes."""
    width, inner = at.width, 4 * at.width
    outer_shape, inner_shape = ["batch", LENGTH, width], ["batch", LENGTH, inner]
    x = at.node("LayerNormalization", [at.x, at.weight(width), at.weight(width)], outer_shape, axis=-1)
    x = at.node("MatMul", [x, at.weight(width, inner)], inner_shape)
    x = at.node("Relu", [at.node("Add", [x, at.weight(inner)], inner_shape)], inner_shape)
    x = at.node("MatMul", [x, at.weight(inner, width)], outer_shape)
    at.x = at.node("Add", [at.x, at.node("Add", [x, at.weight(width)], outer_shape)], outer_shape)


def convolution(at: Builder) -> None:
    """Two convolutions over the length with normalisation, and a shortcut: 9 nodes."""
    width = at.width
    turned, plain = ["batch", width, LENGTH], ["batch", LENGTH, width]
    x = at.node("Transpose", [at.x], turned, perm=[0, 2, 1])
    for _ in range(2):
        x = at.node("Conv", [x, at.weight(width, width, 3)], turned, pads=[1, 1])
        x = at.node("BatchNormalization", [x, *(at.weight(width) for _ in range(4))], turned)
        x = at.node("Relu", [x], turned)
    x = at.node("Transpose", [x], plain, perm=[0, 2, 1])
    at.x = at.node("Add", [at.x, x], plain)


def attention(at: Builder) -> None:
    """Multi-head attention from separate projections, and a shortcut: 15 nodes."""
    width, each = at.width, at.width // HEADS
    plain, cut = ["batch", LENGTH, width], ["batch", LENGTH, HEADS, each]
    heads, scores = ["batch", HEADS, LENGTH, each], ["batch", HEADS, LENGTH, LENGTH]
    q, k, v = (head(at, perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    weights = at.node("Softmax", [at.node("MatMul", [q, k], scores)], scores, axis=-1)
    mixed = at.node("Transpose", [at.node("MatMul", [weights, v], heads)], cut, perm=[0, 2, 1, 3])
    joined = at.node("Reshape", [mixed, at.numbers(0, 0, width)], plain)
    at.x = at.node("Add", [at.x, at.node("MatMul", [joined, at.weight(width, width)], plain)], plain)


def head(at: Builder, perm: list[int]) -> ir.Value:
    width, each = at.width, at.width // HEADS
    sizes: list[int | str] = ["batch", LENGTH, HEADS, each]
    x = at.node("MatMul", [at.x, at.weight(width, width)], ["batch", LENGTH, width])
    x = at.node("Reshape", [x, at.numbers(0, 0, HEADS, each)], sizes)
    return at.node("Transpose", [x], [sizes[place] for place in perm], perm=perm)


CHAINS = {"mlp": feed_forward, "conv": convolution, "attention": attention}


if __name__ == "__main__":
    main()
