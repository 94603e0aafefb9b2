"""Peak memory and time of pruning a model larger than a machine wants to hold.

    python benchmarks/memory.py [--layers 40] [--folder /tmp]

Writes a chain of MatMul and Relu with 40 random float32 matrices of 4096 x 6144 (4 GB) as external data, halves every
hidden dimension with `optimize`, once with `--no-verify` and once verified, and deletes all of it. Each run is a
process of its own. The peak is resident memory as Linux counts it, pages of mapped files included.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from bevel.report import size

NARROW, WIDE = 4096, 6144
PASSES = "prune-channels{ratio=0.5}"
# The child runs the command line, then prints the peak the kernel saw, in kilobytes. Not getrusage: its figure also
# counts what the parent held when it started the child.
CHILD = """
import pathlib, re, sys
from bevel.cli import optimize
try:
    optimize(sys.argv[1:])
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a disk with room for 10 GB")
    options = parser.parse_args()
    needed = options.layers * NARROW * WIDE * 4 * 2.6  # the model, its half, and what verification writes
    if shutil.disk_usage(options.folder).free < needed:
        sys.exit(f"{options.folder} has less than {size(int(needed))} free: name another --folder")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bevel-memory-") as folder:
        run(Path(folder), options.layers)


def run(folder: Path, layers: int) -> None:
    source = folder / "model.onnx"
    content = generate(source, layers)
    print(f"{layers} layers, {size(content)}")
    for choice in ("--no-verify", "--verify"):
        peak, seconds = measured(source, folder / "small.onnx", choice)
        left = sum(file.stat().st_size for file in folder.glob("small.onnx*"))
        print(f"{choice:<12} peak {size(peak)} ({peak / content:.2f}x the model)  {seconds:.1f} s  saved {size(left)}")
        for file in folder.glob("small.onnx*"):
            file.unlink()


def generate(path: Path, layers: int) -> int:
    """Write the model, one matrix at a time; return the bytes of its weights."""
    data, offset = path.with_name("weights.bin"), 0
    nodes, weights = [], []
    generator = np.random.default_rng(0)
    with data.open("wb") as file:
        for layer in range(layers):
            shape = (NARROW, WIDE) if layer % 2 == 0 else (WIDE, NARROW)
            array = generator.standard_normal(shape, dtype=np.float32)
            array *= (2 / shape[0]) ** 0.5  # keeps activations of the same size through all layers
            file.write(array.data)
            weights.append(external(f"w{layer}", shape, data.name, offset, array.nbytes))
            offset += array.nbytes
            nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"], name=f"matmul{layer}"))
            nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"], name=f"relu{layer}"))
    ends = [NARROW, NARROW if layers % 2 == 0 else WIDE]
    first, last = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in zip(("x0", f"x{layers}"), ends, strict=True)
    )
    graph = helper.make_graph(nodes, "chain", [first], [last], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return offset


def external(name: str, shape: tuple[int, int], location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, entry in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(entry))
    return tensor


def measured(source: Path, target: Path, choice: str) -> tuple[int, float]:
    """Peak resident bytes and wall seconds of one run of `optimize`."""
    arguments = [source, "--passes", PASSES, "-o", target, choice, "--no-latency", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    return int(done.stdout.split()[-1]) * 1024, time.perf_counter() - start


if __name__ == "__main__":
    main()
