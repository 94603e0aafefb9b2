"""Block quantization beside ONNX Runtime's own quantizer: size, error, time and memory of each.

    python -m benchmarks.quantization [--model synthetic|minilm|magika|gpt|digits] [--bits 4 ...] [--block 32 ...]
                                      [--layers 12] [--width 1024] [--only PATTERN]

`benchmarks/quantization_models.py` says what the models are and how they are judged. Only layers are quantized, no
tables; the other tool sees matrix products alone, and leaves convolutions as they are. Every run is a process of its
own that loads the model, quantizes it and saves it; its peak is resident memory as Linux counts it. `bits/element` are
those of the file that are not in the other weights; ONNX Runtime's HQQ has a float zero point a block. The last columns
are how many times faster than the floats the result runs with so many rows (tokens, images or files), on one thread,
by the least processor time, the two taking turns.
"""

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import bevel
from benchmarks.quantization_models import MODELS, Array, Network
from benchmarks.turns import faster
from bevel.backends.onnxruntime import Session
from bevel.passes.fitting.layers import layers

ROWS = (1, 16, 128)
# Ours by the name of the column: the options of quantize-blocks.
OURS = {
    "nearest": "format=int{bits}",
    "nearest, zero points": "format=uint{bits}",
    "clip": "format=uint{bits} rounding=clip",
    "hqq": "format=uint{bits} rounding=hqq",
    "gptq": "format=uint{bits} rounding=gptq",
    "adaround": "format=uint{bits} rounding=adaround",
}
THEIRS = ("nearest", "nearest, zero points", "k-quant", "hqq", "gptq")
# What their other methods can do.
FOUR_BITS_ONLY = ("k-quant", "hqq", "gptq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="synthetic")
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--block", type=int, nargs="+", default=[32])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--only", default="*", help="a pattern of `tool method`, as in the table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(**json.loads(options.child))
        return
    with tempfile.TemporaryDirectory(prefix="bevel-quantization-") as folder:
        network = MODELS[options.model](Path(folder), options)
        np.savez(Path(folder) / "feeds.npz", **packed(network.feeds))
        head = ("tool", "method", "bits", "block", "bits/element", "MB", *network.columns, "s", "cpu s", "peak MB")
        print(" | ".join((*head, *(f"x at {count}" for count in ROWS))), flush=True)
        print(" | ".join(("floats", "", "32", "", "32", "", *network.quality(network.path))), flush=True)
        for bits in options.bits:
            for block in options.block:
                for tool, method in runs(bits):
                    if fnmatch.fnmatch(f"{tool} {method}", options.only):
                        print(" | ".join(row(network, tool, method, bits, block)), flush=True)


def runs(bits: int) -> Iterator[tuple[str, str]]:
    yield from (("bevel", method) for method in OURS)
    yield from (
        ("onnxruntime", method) for method in THEIRS if bits == 4 or (bits != 3 and method not in FOUR_BITS_ONLY)
    )


def row(network: Network, tool: str, method: str, bits: int, block: int) -> Iterator[str]:
    result = network.path.with_name("result.onnx")
    task = {"tool": tool, "method": method, "bits": bits, "block": block}
    given = json.dumps(task | {"source": str(network.path), "result": str(result)})
    done = subprocess.run([sys.executable, "-m", __spec__.name, "--child", given], capture_output=True, text=True)
    yield from (tool, method, str(bits), str(block))
    if done.returncode:
        yield f"failed: {done.stderr.strip().splitlines()[-1][:160]}"
        return
    seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    size = result.stat().st_size
    rest, elements = others(network.path)
    yield f"{(size - rest) * 8 / elements:.2f}"
    yield f"{size / 1e6:.1f}"
    yield from network.quality(result)
    yield from (f"{seconds:.1f}", f"{cpu:.1f}", f"{peak / 1e6:.0f}")
    yield from speeds(network, result)


def speeds(network: Network, result: Path) -> Iterator[str]:
    """Yield how many times faster than the floats a model runs."""
    with (
        Session(bevel.load(network.path), threads=1) as floats,
        Session(bevel.load(result), threads=1) as quantized,
    ):
        for count in ROWS:
            yield f"{faster(floats, quantized, network.rows(count)):.2f}"


def others(path: Path) -> tuple[int, int]:
    """Return the bytes of a file that are not in weights of products, and the elements of these."""
    elements = sum(layer.weight.const_value.size for layer in layers(bevel.load(path)))
    files = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))
    return files - 4 * elements, elements


def child(tool: str, method: str, bits: int, block: int, source: str, result: str) -> None:
    with np.load(Path(source).with_name("feeds.npz")) as kept:
        feeds = unpacked(kept)
    quantize = ours if tool == "bevel" else theirs
    wall, cpu = time.perf_counter(), time.process_time()
    with quiet():
        quantize(method, bits, block, source, result, feeds)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    print(json.dumps([*spent, int(peak[1]) * 1024]))


def ours(method: str, bits: int, block: int, source: str, result: str, feeds: list[dict[str, Array]]) -> None:
    model = bevel.load(source)
    only = ",".join(str(layer.node.name) for layer in layers(model))
    spec = OURS[method].format(bits=bits)
    step = f'quantize-blocks{{{spec} block={block} only="{only}"}}'.replace(",", '","')
    bevel.optimize(model, step, calibration=feeds, verify=False)
    bevel.save(model, result)


def theirs(method: str, bits: int, block: int, source: str, result: str, feeds: list[dict[str, Array]]) -> None:
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(feeds)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.rest, None)

    configs = {
        "nearest": lambda: tool.DefaultWeightOnlyQuantConfig(block, is_symmetric=True, accuracy_level=4, bits=bits),
        "nearest, zero points": lambda: tool.DefaultWeightOnlyQuantConfig(
            block, is_symmetric=False, accuracy_level=4, bits=bits
        ),
        "hqq": lambda: tool.HQQWeightOnlyQuantConfig(block_size=block, bits=bits),
        "k-quant": lambda: tool.KQuantWeightOnlyQuantConfig(),
        "gptq": lambda: tool.GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(), block_size=block),
    }
    quantizer = tool.MatMulNBitsQuantizer(
        onnx.load(source), bits=bits, block_size=block, accuracy_level=4, algo_config=configs[method]()
    )
    quantizer.process()
    quantizer.model.save_model_to_file(result)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what a tool prints out of the result."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)


def packed(feeds: list[dict[str, Array]]) -> dict[str, Array]:
    return {f"{place}/{name}": array for place, feed in enumerate(feeds) for name, array in feed.items()}


def unpacked(kept: Any) -> list[dict[str, Array]]:
    feeds: dict[int, dict[str, Array]] = {}
    for key in kept.files:
        place, name = key.split("/", 1)
        feeds.setdefault(int(place), {})[name] = kept[key]
    return [feeds[place] for place in sorted(feeds)]


if __name__ == "__main__":
    main()
