"""Block quantization beside other tools' quantizers: size, error, time and memory of each.

    python -m benchmarks.quantization [--model synthetic|minilm|magika|gpt|digits] [--bits 4 ...] [--block 32 ...]
                                      [--layers 12] [--width 1024] [--only PATTERN ...] [--rows 1 16 128]
                                      [--products] [--peers PYTHON]

What the models are and how they are judged is in `quantization_models.py`, what is compared in
`quantization_methods.py`. Other tools than ONNX Runtime have an environment of their own
(`requirements-quantization.txt`), and take part if its interpreter is given. Only layers are quantized, no tables; the
other tools see matrix products alone in blocks, and leave convolutions as they are. With `--products` ours do so too,
and bits are those of products. Every run is a process of its own that loads the model, quantizes it and saves it
(`quantization_child.py`); its peak is resident memory as Linux counts it. `bits/element` are those of the file that are
not in the other weights. The last columns are how many times faster than the floats the result runs with so many rows
(tokens, images or files), on one thread, by the least processor time, the two taking turns; `--rows` without a number
leaves them out.

At the end stands for each width and block who is best, with data and without. Of ours, those count that take no more
bits than the largest of theirs (their HQQ has a float zero point a block), and of theirs those of at most 16 bits.
The rows of 8-bit integers (`int8`) have activations in 8 bits, too, and a scale a channel whatever the block.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import bevel
from benchmarks.quantization_child import is_product, packed
from benchmarks.quantization_methods import BEVEL, OURS, RUNTIME, THEIRS, recipe
from benchmarks.quantization_models import MODELS, Network
from benchmarks.turns import faster
from bevel.backends.onnxruntime import Session
from bevel.passes.fitting.layers import layers

ROWS = (1, 16, 128)
FLOAT_BITS = 32
# Bytes of the file that are no weights differ a little.
SLACK = 1.02
CHILD = "benchmarks.quantization_child"


@dataclass(frozen=True)
class Run:
    """One method on one model: what it takes, and what the result is worth by the column that decides."""

    tool: str
    method: str
    bits: int
    block: int
    calibrated: bool
    each: float = FLOAT_BITS
    worth: float = float("nan")

    def __str__(self) -> str:
        return f"{self.worth:g} ({self.method}, {self.each:.2f} bits)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="synthetic")
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--block", type=int, nargs="+", default=[32])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of `tool method`, as in the table")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--products", action="store_true", help="leave all but products of matrices in floats")
    parser.add_argument("--peers", help="the interpreter of the environment that the other tools are in")
    options = parser.parse_args()
    tools = interpreters(options.peers)
    with tempfile.TemporaryDirectory(prefix="bevel-quantization-") as folder:
        network = MODELS[options.model](Path(folder), options)
        np.savez(Path(folder) / "feeds.npz", **packed(network.feeds))
        head = ("tool", "method", "bits", "block", "bits/element", "MB", *network.columns, "s", "cpu s", "peak MB")
        print(" | ".join((*head, *(f"x at {count}" for count in options.rows))), flush=True)
        print(" | ".join(("floats", "", "32", "", "32", "", *network.quality(network.path))), flush=True)
        done = []
        for run in runs(options.bits, options.block, tools):
            if any(fnmatch.fnmatch(f"{run.tool} {run.method}", pattern) for pattern in options.only):
                cells, result = measured(network, run, tools[run.tool], options.rows, options.products)
                print(" | ".join((run.tool, run.method, str(run.bits), str(run.block), *cells)), flush=True)
                done.append(result)
        print("\n".join(summary(network, done)))


def interpreters(peers: str | None) -> dict[str, str]:
    """Return what each tool that takes part runs in."""
    here = dict.fromkeys((BEVEL, RUNTIME), sys.executable)
    return here if peers is None else {**dict.fromkeys((BEVEL, *THEIRS), peers), **here}


def runs(widths: list[int], blocks: list[int], tools: dict[str, str]) -> Iterator[Run]:
    for bits in widths:
        for block in blocks:
            for tool in tools:
                for name, method in (OURS if tool == BEVEL else THEIRS[tool]).items():
                    if bits in method.bits:
                        yield Run(tool, name, bits, block, method.calibrated)


def measured(network: Network, run: Run, python: str, rows: list[int], products: bool) -> tuple[list[str], Run]:
    """Return the cells of a run in an interpreter, and the run with what it found; that has no worth if it failed."""
    result = network.path.with_name("result.onnx")
    written = [result, result.with_name(f"{result.name}.data")]
    for file in written:
        file.unlink(missing_ok=True)
    what = {"method": run.method, "bits": run.bits, "block": run.block}
    if run.tool == BEVEL:
        steps = recipe(run.method, run.bits, run.block)
        what = {"recipe": steps, "products": products, "calibrated": run.calibrated}
    given = json.dumps({"tool": run.tool, "source": str(network.path), "result": str(result), **what})
    done = subprocess.run([python, "-m", CHILD, given], capture_output=True, text=True)
    if done.returncode:
        return [f"failed: {done.stderr.strip().splitlines()[-1][:160]}"], run
    seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    size = sum(file.stat().st_size for file in written if file.exists())
    rest, elements = others(network.path, products)
    each = (size - rest) * 8 / elements
    try:
        quality = list(network.quality(result))
    except bevel.BevelError as error:
        return [f"does not run: {error}".splitlines()[0][:160]], run
    cells = [f"{each:.2f}", f"{size / 1e6:.1f}", *quality, f"{seconds:.1f}", f"{cpu:.1f}", f"{peak / 1e6:.0f}"]
    worth = float(quality[network.columns.index(network.decides)])
    found = Run(run.tool, run.method, run.bits, run.block, run.calibrated, each, worth)
    return [*cells, *speeds(network, result, rows)], found


def speeds(network: Network, result: Path, rows: list[int]) -> Iterator[str]:
    """Yield how many times faster than the floats a model runs."""
    with (
        Session(bevel.load(network.path), threads=1) as floats,
        Session(bevel.load(result), threads=1) as quantized,
    ):
        for count in rows:
            yield f"{faster(floats, quantized, network.rows(count)):.2f}"


def others(path: Path, products: bool) -> tuple[int, int]:
    """Return the bytes of a file that are not in weights of layers, or of products alone, and the elements of these."""
    counted = [layer for layer in layers(bevel.load(path)) if not products or is_product(layer)]
    elements = sum(layer.weight.const_value.size for layer in counted)
    files = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))
    return files - 4 * elements, elements


def summary(network: Network, done: list[Run]) -> Iterator[str]:
    """Yield a line for each width and block, without data and with, that says whose best is better."""
    smaller = [run for run in done if run.each <= FLOAT_BITS / 2 and run.worth == run.worth]
    for bits, block in dict.fromkeys((run.bits, run.block) for run in done):
        here = [run for run in smaller if (run.bits, run.block) == (bits, block)]
        largest = max((run.each for run in here if run.tool != BEVEL), default=float(FLOAT_BITS))
        for calibrated in (False, True):
            ours, theirs = (
                [
                    run
                    for run in here
                    if (run.tool == BEVEL) == own and run.calibrated <= calibrated and run.each <= most
                ]
                for own, most in ((True, largest * SLACK), (False, FLOAT_BITS))
            )
            best = [network.best(side, key=lambda run: run.worth) if side else None for side in (ours, theirs)]
            kind = "calibrated" if calibrated else "no data"
            yield f"{network.decides}, {bits} bits, block {block}, best {kind}: {verdict(network, *best)}"


def verdict(network: Network, ours: Run | None, theirs: Run | None) -> str:
    if ours is None or theirs is None:
        return f"ours {ours or 'none'}, theirs {theirs or 'none'}"
    ahead = (
        "equal"
        if ours.worth == theirs.worth
        else "ours"
        if network.best(ours.worth, theirs.worth) == ours.worth
        else "THEIRS"
    )
    return f"ours {ours}, theirs {theirs}: {ahead}"


if __name__ == "__main__":
    main()
