"""How fast mixtures of experts run in ONNX Runtime, against the dense layer, for one, some and many rows.

    python -m benchmarks.experts_latency [--width 1024] [--hidden 4096] [--experts 16] [--active 4]

One feed-forward layer (Relu) of random weights becomes experts of which few are active, routed by a random router; all
forms have the same parameters and answer the same rows, in turns, in one run on one thread. What counts is the
processor time of that thread. Look at the ratios. qmoe 4/32 has weights of 4 bits, of which 32 share a scale.
"""

import argparse
import time

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from bevel.backends.onnxruntime import Session
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.feed_forward import feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.names import Names
from bevel.ir.split import Partition
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.experts.emissions import EMISSIONS, Integers
from bevel.passes.experts.evidence import evidence
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.routers import Linear

ROWS = (1, 16, 128)
EMITTED = (
    *((name, name, Integers()) for name in ("blocks", "moe", "gather", "masked", "dynamic")),
    *(
        (f"qmoe {bits}/{block}", "qmoe", Integers(bits, block))
        for bits, block in ((4, 32), (4, 64), (4, 128), (8, 128))
    ),
)
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
layer (float[n, {width}] x) => (float[n, {width}] y) {{
  h = MatMul (x, up)
  a = Relu (h)
  y = MatMul (a, down)
}}
"""


def dense(width: int, hidden: int) -> ir.Model:
    """Return a feed-forward layer of random weights."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT.format(width=width))
    for name, shape in (("up", (width, hidden)), ("down", (hidden, width))):
        array = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return bevel.load(proto)


def rows(count: int, width: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, width)).astype(np.float32)}


def forms(layer: ir.Model, width: int, experts: int, active: int) -> dict[str, ir.Model]:
    """Return the layer and what it becomes, by emission: slices of it, and a router of random weights."""
    rng = np.random.default_rng(2)
    router = Linear(rng.standard_normal((width, experts)), np.zeros(experts))
    context = Context(0, Calibration(lambda: [rows(64, width)], "benchmark"), Execution())
    found = {"dense": layer}
    for name, emission, integers in EMITTED:
        model = found[name] = layer.clone()
        (each,) = evidence(model, feed_forwards(analyse(model))[0], context)
        slices = np.split(np.arange(each.layer.size), experts)
        mixture = Mixture(Partition(np.arange(0), tuple(slices)), router, active)
        EMISSIONS[emission].prepare(each, each.down, integers)(each.parts, mixture, Names(model))
        remove_dead(model)
    return found


def processor_times(sessions: list[Session], feed: dict[str, np.ndarray], rounds: int = 9) -> list[float]:
    """Return the median processor time of a run of each in milliseconds, taken in turns."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for each, session in zip(times, sessions, strict=True):
            start = time.thread_time()
            session.run(feed)
            each.append(1000 * (time.thread_time() - start))
    return [float(np.median(each)) for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 1024), ("hidden", 4096), ("experts", 16), ("active", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    found = forms(dense(options.width, options.hidden), options.width, options.experts, options.active)
    sessions = {name: Session(model, threads=1) for name, model in found.items()}
    print(f"{'':12}" + "".join(f"{f'M={count}':>18}" for count in ROWS))
    each = list(sessions.values())
    times = [processor_times(each, rows(count, options.width), 25 if count == 1 else 9) for count in ROWS]
    for place, name in enumerate(sessions):
        cells = (f"{each[place]:9.2f} ms {each[0] / each[place]:4.1f}x" for each in times)
        print(f"{name:12}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
