"""What second-order pruning costs: time in forward passes, and memory.

    python -m benchmarks.second_order_cost [--layers 12] [--width 768] [--samples 64] [--tokens 128]

Halves the heads and hidden features of a BERT-like encoder with random weights by `prune-channels{importance=obs
refit=true}` on random tokens, in a process of its own, and prints its time as a multiple of one forward pass of the
same samples in ONNX Runtime, with and without the time that factorizing, solving and putting entries in order takes;
and the peak of its memory beside what the model and the largest layer need: the layer's input and output in both
models, and its moments. The target is 20 passes. `magnitude` without a refit is run the same way, as the control.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import scipy.linalg

import bevel
from bevel.ir.cost import cost
from bevel.passes.importance import obs
from bevel.report import size

PIPELINES = {
    "obs and refit": "prune-channels{ratio=0.5 importance=obs refit=true samples=%d}",
    "obs": "prune-channels{ratio=0.5 importance=obs samples=%d}",
    "magnitude": "prune-channels{ratio=0.5 samples=%d}",
}
HIDDEN = 4  # times the width
BATCH = 8
VOCABULARY = 50  # of the test network
DOUBLE, SINGLE = 8, 4
# What resets the peak of memory that Linux keeps of a process.
RESET = "5"
# Damped moments, their factor, moments across and sums of two kinds: what is in memory of one layer at a time.
MOMENTS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("width", 768), ("samples", 64), ("tokens", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run(Path(options.child[0]), options.child[1], options)
        return
    with tempfile.TemporaryDirectory(prefix="bevel-cost-") as folder:
        path = Path(folder) / "encoder.onnx"
        model = encoder(options)
        bevel.save(model, path)
        spent = cost(model)
        rows = options.samples * options.tokens
        width, hidden = options.width, HIDDEN * options.width
        layer = 2 * rows * (width + hidden) * SINGLE + MOMENTS * hidden**2 * DOUBLE
        print(
            f"{options.layers} layers of {options.width}, {size(spent.bytes)}; {options.samples} x {options.tokens} ids"
        )
        print(f"model and largest layer: {size(spent.bytes + layer)}")
        for name in PIPELINES:
            arguments = [f"--{key}={getattr(options, key)}" for key in ("layers", "width", "samples", "tokens")]
            command = [sys.executable, "-m", "benchmarks.second_order_cost", *arguments, "--child", str(path), name]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(f"{name:<14} {answer.strip()}", flush=True)


def encoder(options: argparse.Namespace) -> ir.Model:
    import torch

    from tests.zoo.language import Bert

    torch.manual_seed(0)
    width, length = options.width, options.tokens
    module = Bert(layers=options.layers, width=width, hidden=HIDDEN * width, heads=width // 64, length=length)
    ids = torch.zeros(2, 16, dtype=torch.long)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=length)}
    return bevel.load(module.eval(), (ids, torch.ones_like(ids), ids), dynamic_shapes=(sizes, sizes, sizes))


def run(path: Path, name: str, options: argparse.Namespace) -> None:
    """Time one forward pass over the samples, then the pipeline; print both and the peak of memory."""
    from bevel.passes.execution import Execution

    model = bevel.load(path)
    feeds = tokens(model, options)
    with Execution().open(model) as runs:
        runs.run(feeds[0])
        forward = elapsed(lambda: [runs.run(feed) for feed in feeds])
    solving = Stopwatch()
    for place, function in ((scipy.linalg, "cho_factor"), (scipy.linalg, "cho_solve"), (obs, "eliminate")):
        setattr(place, function, solving.around(getattr(place, function)))
    Path("/proc/self/clear_refs").write_text(RESET)  # the session that was timed is no part of the peak
    start = peak()
    total = elapsed(lambda: bevel.optimize(model, PIPELINES[name] % options.samples, calibration=feeds, verify=False))
    print(
        f"{total:6.1f} s = {total / forward:5.1f} forward passes of {forward:.2f} s; "
        f"{solving.seconds:.1f} s of it factorizing, without that {(total - solving.seconds) / forward:.1f}; "
        f"peak {size(peak())} (before: {size(start)})"
    )


def tokens(model: ir.Model, options: argparse.Namespace) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    ids, mask, types = (value.name for value in model.graph.inputs)
    shape = (BATCH, options.tokens)
    return [
        {ids: rng.integers(0, VOCABULARY, shape), mask: np.ones(shape, np.int64), types: np.zeros(shape, np.int64)}
        for _ in range(options.samples // BATCH)
    ]


class Stopwatch:
    """Adds up how long some functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def elapsed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak() -> int:
    """The most memory this process had since its peak was reset, in bytes, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main()
