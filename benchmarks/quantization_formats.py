"""What each format of quantized weights takes, and how fast ONNX Runtime reads it: the table of docs/formats.md.

    python -m benchmarks.quantization_formats [--width 2048] [--block 32] [--only int*] [--write docs/formats.md]

One product of `[rows, width]` with a Gaussian matrix `[width, width]`, quantized to the nearest, on one thread. `read
by` is what runs once ONNX Runtime has loaded the model; formats that are floats by then are small in the file alone.
`bits` are those of the file, scales included. `x at 1` is how many times faster than the floats one row runs, by the
least processor time, the two taking turns; `kernel` is the largest error of the output against NumPy with the same
codes, over the largest output: kernels of 8-bit activations round these. `weights` is the relative error of the
weights.
"""

import argparse
import fnmatch
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

import bevel
from benchmarks.turns import faster
from bevel.backends.onnxruntime import Session
from bevel.errors import BevelError
from bevel.passes.formats import Scheme, any_format
from bevel.passes.formats.schemes import encoded
from bevel.passes.quantization.kernels import MICROSOFT
from bevel.registry import formats

ROWS: Final = (1, 16, 128)
FLOATS: Final = "floats"
EMISSIONS: Final = ("fast", "portable")
COLUMNS: Final = ("format", "emit", "read by", "bits", *(f"x at {rows}" for rows in ROWS), "kernel", "weights")

Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--only", default="*", help="a pattern of formats")
    parser.add_argument("--write", type=Path, help="a file to write the table to, with what it is")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((options.width, options.width), np.float32) / np.float32(options.width**0.5)
    inputs = rng.standard_normal((max(ROWS), options.width), np.float32)
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    print(*lines, sep="\n", flush=True)
    for name in fnmatch.filter(formats(), options.only):
        for cells in _rows(name, weights, inputs, options.block):
            lines.append(_line(cells))
            print(lines[-1], flush=True)
    if options.write:
        options.write.write_text(_page(lines, options), "utf-8")


def _rows(name: str, weights: Array, inputs: Array, block: int) -> Iterator[Sequence[str]]:
    """Yield the cells of a format in each emission; one row where both give the same."""
    known = _decoded(name, weights, block)
    lost = float(np.linalg.norm(known - weights) / np.linalg.norm(weights))
    seen: set[tuple[str, str]] = set()
    for emit in EMISSIONS:
        with tempfile.TemporaryDirectory(prefix="bevel-formats-") as folder:
            path = Path(folder) / "quantized.onnx"
            model = bevel.load(_product(weights))
            try:
                bevel.optimize(model, f"quantize-blocks{{format={name} block={block} emit={emit}}}", verify=False)
            except BevelError as error:
                yield name, emit, f"refused: {error.what}", *[""] * (len(COLUMNS) - 3)
                continue
            bevel.save(model, path)
            read, bits = _reader(model), f"{path.stat().st_size * 8 / weights.size:.2f}"
            if (read, bits) in seen:
                continue
            seen.add((read, bits))
            both = "both" if read == FLOATS and emit == EMISSIONS[0] else emit
            yield name, both, read, bits, *_measured(path, weights, known, inputs), f"{lost:.1e}"


def _reader(model: Any) -> str:
    """Say what reads the codes once the model is loaded."""
    operators = [node.op_type for node in model.graph if node.domain == MICROSOFT or node.op_type == "DequantizeLinear"]
    return operators[0] if operators else FLOATS


def _measured(path: Path, weights: Array, known: Array, inputs: Array) -> Iterator[str]:
    """Yield how much faster than floats each number of rows runs, and the error of the kernel."""
    with (
        Session(bevel.load(_product(weights)), threads=1) as floats,
        Session(bevel.load(path), threads=1) as quantized,
    ):
        for rows in ROWS:
            yield f"{faster(floats, quantized, {'x': inputs[:rows]}):.2f}"
        (found,) = quantized.run({"x": inputs}).values()
    wanted = inputs @ known
    yield f"{np.abs(found - wanted).max() / np.abs(wanted).max():.0e}"


def _decoded(name: str, weights: Array, block: int) -> Array:
    """Return what is left of weights in a format, by NumPy."""
    found = any_format(name)
    if isinstance(found, Scheme):
        return encoded(found, weights, 0).decode()
    return found.encode(weights, 0, block).decode()


def _product(weights: Array) -> onnx.ModelProto:
    inputs, outputs = weights.shape
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", inputs])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", outputs])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _page(lines: Sequence[str], options: argparse.Namespace) -> str:
    doc = (__doc__ or "").split("\n\n")
    command = f"python -m benchmarks.quantization_formats --width {options.width} --block {options.block}"
    head = "# Formats of quantized weights\n\n" + "\n\n".join(doc[2:]).strip()
    made = f"Made by\n`{command} --write docs/formats.md`.\nRows of floats show how far the ratios scatter."
    return "\n\n".join((head, made, "\n".join(lines))) + "\n"


if __name__ == "__main__":
    main()
