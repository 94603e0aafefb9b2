"""Which widths ONNX Runtime's kernels like: the time of convolutions and matrix products against their channels.

    python benchmarks/kernel_widths.py

Two layers in a row, the width between them varied, one thread; all widths in turns, and of each the 20th percentile of
its times counts. Each row lists `width: milliseconds (time a channel, relative to the widest)`: where the time goes in
steps of a block of channels, the relative figure is lowest at its multiples; where every channel counts, it is flat.
"""

import time
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SECONDS = 4.0
LEAST_ROUNDS = 40
NARROW = (8, 12, 16, 20, 24, 28, 32, 40, 48, 52, 56, 60, 64)
WIDE = (160, 168, 176, 184, 192, 200, 208, 216, 224, 232, 240, 248, 256)
Feed = dict[str, np.ndarray]


def layer(kind: str, inner: int, shape: Sequence[int]) -> tuple[onnx.ModelProto, Feed]:
    """Two layers, from the input's channels to `inner` and back; `depthwise` has one more between them."""
    rng = np.random.default_rng(0)
    outer = shape[1]
    kernel = {"conv3x3": (3, 3), "conv1x1": (1, 1), "depthwise": (1, 1), "matmul": ()}[kind]
    nodes, weights, value = [], [], "x"
    for place, (inputs, outputs) in enumerate([(outer, inner), (inner, outer)]):
        size = (inputs, outputs) if kind == "matmul" else (outputs, inputs, *kernel)
        weights.append(numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), f"w{place}"))
        pads = {"pads": [1] * 4} if kind == "conv3x3" else {}
        operator = "MatMul" if kind == "matmul" else "Conv"
        nodes.append(helper.make_node(operator, [value, f"w{place}"], [f"c{place}"], **pads))
        nodes.append(helper.make_node("Relu", [f"c{place}"], [f"r{place}"]))
        value = f"r{place}"
        if kind == "depthwise" and place == 0:
            weights.append(numpy_helper.from_array(rng.standard_normal((inner, 1, 3, 3)).astype(np.float32), "d"))
            nodes.append(helper.make_node("Conv", [value, "d"], ["r0d"], pads=[1] * 4, group=inner))
            value = "r0d"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(
        nodes, kind, inputs, [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model, {"x": rng.standard_normal(shape).astype(np.float32)}


def times(kind: str, widths: Sequence[int], shape: Sequence[int]) -> dict[int, float]:
    """Return milliseconds by width."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runs = []
    for width in widths:
        model, feed = layer(kind, width, shape)
        runs.append((ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]), feed))
    rounds: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(rounds) < LEAST_ROUNDS:
        rounds.append([])
        for session, feed in runs:
            start = time.perf_counter()
            session.run(None, feed)
            rounds[-1].append(1e3 * (time.perf_counter() - start))
    return dict(zip(widths, np.percentile(rounds[2:], 20, axis=0), strict=True))


def main() -> None:
    for kind, widths, shape in (
        ("conv3x3", NARROW, (1, 64, 28, 28)),
        ("conv3x3", WIDE, (1, 256, 14, 14)),
        ("conv1x1", NARROW, (1, 64, 56, 56)),
        ("depthwise", NARROW, (1, 64, 56, 56)),
        ("matmul", NARROW, (128, 256)),
        ("matmul", WIDE, (128, 256)),
    ):
        found = times(kind, widths, shape)
        widest = found[widths[-1]] / widths[-1]
        cells = " ".join(f"{width}: {found[width]:.2f} ({found[width] / width / widest:.2f})" for width in widths)
        print(f"{kind} {'x'.join(map(str, shape))}\n    {cells}", flush=True)


if __name__ == "__main__":
    main()
