"""What thin matrices, the axis of blocks, formats for files and ways of rounding are worth: bits against error.

    python -m benchmarks.quantization_repair [--model synthetic|minilm|magika|gpt|digits] [--only PATTERN]

The models are those of `benchmarks/quantization_models.py`, quantized by the options in the first column, their layers
alone, no tables. `bits/element` counts codes, scales, codebooks and thin matrices; `MB` is the file, with the nodes
that decode it. The error is that of all outputs, relative to their size, on a quarter of the calibration data, which
is kept from the quantizer.
"""

import argparse
import fnmatch
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bevel
from benchmarks.quantization_models import MODELS, Array, Feed
from bevel.backends.onnxruntime import Level, Session
from bevel.passes.fitting.layers import layers
from bevel.passes.quantize_blocks import QuantizeBlocks

FOUR: dict[str, Any] = {"format": "uint4", "rounding": "clip"}
THREE: dict[str, Any] = {"format": "uint3", "rounding": "clip"}
WIDE: dict[str, Any] = {"format": "uint3", "block": 128}
INPUTS = {"metric": "inputs"}
TRIALS: tuple[dict[str, Any], ...] = (
    FOUR,
    FOUR | {"branch": "lorc"},
    FOUR | {"branch": "svdquant"},
    FOUR | {"branch": "lorc"} | INPUTS,
    FOUR | {"branch": "svdquant"} | INPUTS,
    {"format": "uint4", "rounding": "gptq"},
    {"format": "uint4", "rounding": "gptq", "branch": "svdquant"} | INPUTS,
    {"format": "nf4"},
    {"format": "kmeans4"},
    {"format": "dgms4"},
    {"format": "pvq4"},
    THREE,
    THREE | {"branch": "svdquant"} | INPUTS,
    {"format": "kmeans3"},
    {"format": "pvq3"},
    WIDE,
    WIDE | {"axis": "out"},
    WIDE | {"axis": "auto"},
    {"format": "uint2", "rounding": "gptq"},
    {"format": "kmeans2", "rounding": "gptq"},
    {"format": "pvq2"},
    {"format": "vq2"},
    {"format": "vq2"} | INPUTS,
    {"format": "lr2vq2"},
    {"format": "ptq161"},
    {"format": "ptq161"} | INPUTS,
    *(
        {"format": f"uint{bits}", "block": block, "rounding": rounding}
        for bits in (4, 3, 2)
        for block in (32, 128)
        for rounding in ("nearest", "gptq", "adaround", "cbq")
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--only", default="*", help="a pattern of the options in the first column")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bevel-quantization-") as folder:
        network = MODELS[options.model](Path(folder), options)
        cut = len(network.feeds) * 3 // 4
        seen, kept = network.feeds[:cut], network.feeds[cut:]
        wanted = answers(network.path, kept)
        print("options | bits/element | MB | error | cpu s", flush=True)
        for trial in TRIALS:
            name = " ".join(f"{option}={value}" for option, value in trial.items())
            if fnmatch.fnmatch(name, options.only):
                row = list(measured(network.path, trial, seen, kept, wanted, Path(folder) / "result.onnx"))
                print(" | ".join((name, *row)), flush=True)


def measured(
    source: Path, trial: dict[str, Any], seen: Sequence[Feed], kept: Sequence[Feed], wanted: Array, result: Path
) -> Iterator[str]:
    model = bevel.load(str(source))
    only = tuple(sorted({layer.weight.name or "" for layer in layers(model)}))
    start = time.process_time()
    report = bevel.optimize(model, QuantizeBlocks(**trial, only=only), calibration=seen, verify=False)
    spent = time.process_time() - start
    bevel.save(model, result)
    yield report.steps[0].notes[0].partition(" bits an element")[0].rpartition(" ")[2]
    yield f"{result.stat().st_size / 1e6:.2f}"
    yield f"{np.linalg.norm(answers(result, kept) - wanted) / np.linalg.norm(wanted):.4f}"
    yield f"{spent:.1f}"


def answers(path: Path, feeds: Sequence[Feed]) -> Array:
    """Return all outputs of a model in a row."""
    with Session(bevel.load(str(path)), level=Level.AS_DEPLOYED) as session:
        found = [array.ravel() for feed in feeds for array in session.run(feed).values()]
    return np.concatenate([array for array in found if array.dtype.kind == "f"]).astype(np.float64)


if __name__ == "__main__":
    main()
