"""Time and peak memory of quantizing a model of 4 GB to 4 bits, from the shell.

    python -m benchmarks.quantization_streaming [--layers 40] [--format int4] [--block 32] [--folder /tmp] [--runs 3]

Writes a chain of MatMul and Relu with 40 random float32 matrices of 4096 x 6144 (4 GB) as external data, quantizes it
with the command line in a process of its own, and deletes all of it. The file has just been written, so it is read from
the page cache as far as that holds it. `wall` includes the start of Python and writing the result; `cpu` is what the
process computed on all its threads; the peak is resident memory as Linux counts it, pages of mapped files included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import CHILD, NARROW, WIDE, generate
from bevel.report import size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--format", default="int4")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a disk with room for 6 GB")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    needed = options.layers * NARROW * WIDE * 4 * 1.4
    if shutil.disk_usage(options.folder).free < needed:
        sys.exit(f"{options.folder} has less than {size(int(needed))} free: name another --folder")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bevel-streaming-") as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "small.onnx"
        content = generate(source, options.layers)
        print(f"{options.layers} layers, {size(content)}, {os.cpu_count()} processors", flush=True)
        step = f"quantize-blocks{{format={options.format} block={options.block}}}"
        for _ in range(options.runs):
            print(measured(source, target, step), flush=True)


def measured(source: Path, target: Path, step: str) -> str:
    """Quantize a file, and say what that took."""
    arguments = [source, "--passes", step, "-o", target, "--no-verify", "--no-latency", "--quiet"]
    wall, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    spent, after = time.perf_counter() - wall, os.times()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    peak = int(done.stdout.split()[-1]) * 1024
    saved = sum(file.stat().st_size for file in target.parent.glob(f"{target.name}*"))
    for file in target.parent.glob(f"{target.name}*"):
        file.unlink()
    cpu = f"{user + system:.1f} s ({system:.1f} in the system)"
    return f"wall {spent:.1f} s  cpu {cpu}  peak {size(peak)}  {size(saved)}"


if __name__ == "__main__":
    main()
