"""How fast mixtures of experts run in ONNX Runtime, against the dense layer, for one, some and many rows.

    python -m benchmarks.experts_latency [--width 1024] [--hidden 4096] [--experts 16] [--active 4]

One feed-forward layer (Relu) of random weights becomes experts of which few are active, routed by a random router; all
forms have the same parameters and answer the same rows, in turns, in one run. Ratios are what to look at.
"""

import argparse

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from bevel.backends.onnxruntime import Session, latencies

ROWS = (1, 16, 128)
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
    """Return the layer and what convert-moe makes of it, by emission."""
    found = {"dense": layer}
    options = f"experts={experts} active={active} shared=0 splitter=contiguous router=mean-gate refit=false"
    for emit in ("blocks", "masked", "qmoe bits=4", "qmoe bits=8"):
        found[emit] = layer.clone()
        bevel.optimize(found[emit], f"convert-moe{{{options} emit={emit}}}", calibration=[rows(256, width)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 1024), ("hidden", 4096), ("experts", 16), ("active", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    found = forms(dense(options.width, options.hidden), options.width, options.experts, options.active)
    sessions = {name: Session(model, threads=1) for name, model in found.items()}
    print(f"{'':12}" + "".join(f"{f'M={count}':>18}" for count in ROWS))
    times = [latencies(list(sessions.values()), rows(count, options.width)) for count in ROWS]
    for place, name in enumerate(sessions):
        cells = (f"{each[place]:9.2f} ms {each[0] / each[place]:4.1f}x" for each in times)
        print(f"{name:12}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
