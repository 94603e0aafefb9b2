"""Networks in 8 bits, activations too: Bevel and onnxruntime.quantization in one run.

    python -m benchmarks.quantization_int8 [--only digits-residual ...] [--methods "bevel static, mse" ...] [--folder F]

Each network is calibrated with the same unlabelled inputs by every method and judged in ONNX Runtime on held-out data:
score, agreement with the original (how often the first answer is the same, or the text; of sentence vectors the mean
cosine), of texts also how much of their characters is the same, size of the file, and speed against the original with
its normalizations folded, in processor time of one thread, the two taking turns. Networks of ours are trained once and
kept in `--folder`. For ONNX Runtime's quantization the model goes through its own preprocessing first. ResNet-50 and
ShuffleNet are what benchmarks/quantization_int8_light.py says, the trained networks of packages what
benchmarks/quantization_int8_shipped.py says.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.shape_inference import InferenceError
from onnxruntime import quantization as peer
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.table import Table

import bevel
from benchmarks import pruning_accuracy_functions as functions
from benchmarks.pruning_accuracy import FOLDER
from benchmarks.pruning_accuracy_tasks import Agreement, Labelled, Network, batches, networks
from benchmarks.quantization_int8_light import LIGHT, classifier, textures
from benchmarks.quantization_int8_shipped import SHIPPED
from benchmarks.quantization_int8_subjects import Feed, Known, Subject, directions
from bevel.errors import BevelError

CALIBRATED = 128  # samples
STRIDE = 16  # feeds whose activations ONNX Runtime's calibration holds at once: it is gigabytes
IMAGES = {"calibration": 16, "test": 100}  # of ResNet-50 and ShuffleNet
ROUNDS = 9
GOAL = 0.995
CONVOLUTIONAL = ("digits-residual", "digits-plain", "digits-depthwise", *LIGHT, *SHIPPED)
NETWORKS = (*CONVOLUTIONAL, "minilm", "magika")
LIMIT = 0.05  # of the outputs' relative error: as many layers stay in floats as it takes
STATIC = ("minmax", "percentile", "mse", "entropy")
FORMATS = {
    "score": "{:.2%}",
    "agreement": "{:.2%}",
    "characters": "{:.2%}",
    "MB": "{:.3g}",
    "speed": "{:.2f}x",
    "seconds": "{:.1f}",
}


def subject(name: str, seed: int, folder: Path, place: Path) -> Subject:
    """Return a network with its normalizations folded, as a file in `place`."""
    path = place / f"{name}-{seed}.onnx"
    if name in SHIPPED:
        return SHIPPED[name](path)
    if name in LIGHT:
        classifier(name, path)
        value = bevel.load(path).graph.inputs[0].name or ""
        parts = {part: textures(count, seed + 10) for seed, (part, count) in enumerate(IMAGES.items())}
        feeds = {part: [{value: image[None]} for image in images] for part, (images, _) in parts.items()}
        return Subject(path, feeds["calibration"], feeds["test"], Known(feeds["test"], parts["test"][1]))
    (network,) = networks(seed, folder, [name])
    model = bevel.load(network.path)
    bevel.optimize(model, "fold", calibration=network.calibration)
    bevel.save(model, path)
    vectors = (directions, {"agreement": np.dot}) if name == "minilm" else ()
    return Subject(path, network.calibration, held_out(network, model), network.test, *vectors)


def held_out(network: Network, model: ir.Model) -> list[Feed]:
    if isinstance(network.test, Labelled | Agreement):
        return batches(network.test.inputs, model.graph.inputs[0].name or "")
    return functions.feeds(functions.corpus()["test"])


class Reader(peer.CalibrationDataReader):  # type: ignore[misc]
    """Hands feeds to ONNX Runtime's calibration, as many samples as Bevel takes, a few at a time if asked to."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.all = list(taken(feeds))
        self.set_range(0, len(self.all))

    def __len__(self) -> int:
        return len(self.all)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.feeds = iter(self.all[start_index:end_index])

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def taken(feeds: Sequence[Feed]) -> Iterator[Feed]:
    count = 0
    for feed in feeds:
        if count >= CALIBRATED:
            return
        count += len(next(iter(feed.values())))
        yield feed


def ours(pipeline: str, given: Subject, to: Path, max_error: float | None = None) -> None:
    model = bevel.load(given.path)
    bevel.optimize(model, pipeline, calibration=given.calibration, max_error=max_error)
    bevel.save(model, to)


def prepared(given: Subject, to: Path) -> Path:
    """Return the model as ONNX Runtime's own preprocessing leaves it, without types: those of weights become wrong."""
    path = to.with_suffix(".prepared.onnx")
    quant_pre_process(given.path, path, skip_symbolic_shape=True)
    model = onnx.load(path)
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def ort_static(method: str, given: Subject, to: Path) -> None:
    reader = Reader(given.calibration)
    peer.quantize_static(
        prepared(given, to),
        to,
        reader,
        per_channel=True,
        activation_type=peer.QuantType.QUInt8,
        weight_type=peer.QuantType.QInt8,
        calibrate_method=getattr(peer.CalibrationMethod, method),
        extra_options={} if len(reader) % STRIDE else {"CalibStridedMinMax": STRIDE},
    )


def ort_dynamic(operators: list[str] | None, given: Subject, to: Path) -> None:
    peer.quantize_dynamic(
        prepared(given, to), to, op_types_to_quantize=operators, per_channel=True, weight_type=peer.QuantType.QInt8
    )


METHODS: dict[str, Callable[[Subject, Path], None]] = {
    **{f"bevel static, {method}": partial(ours, f"quantize-static{{calibration={method}}}") for method in STATIC},
    f"bevel static, max-error {LIMIT}": partial(ours, "quantize-static{calibration=percentile}", max_error=LIMIT),
    **{f"ort static, {name.lower()}": partial(ort_static, name) for name in ("MinMax", "Percentile", "Entropy")},
    "bevel dynamic": partial(ours, "quantize-dynamic"),
    "ort dynamic": partial(ort_dynamic, None),
    "ort dynamic, MatMul": partial(ort_dynamic, ["MatMul"]),
}


@dataclass(frozen=True)
class Row:
    """What a method made of a network, or why it failed."""

    network: str
    method: str
    score: float = float("nan")
    agreement: float = float("nan")
    characters: float = float("nan")  # of what is read, as many as are the original's
    MB: float = float("nan")
    speed: float = float("nan")
    seconds: float = float("nan")
    refused: str = ""


def rows(name: str, seed: int, folder: Path, methods: Sequence[str]) -> Iterator[Row]:
    """Quantize a network in all ways; the first row is of floats."""
    with tempfile.TemporaryDirectory() as draft:
        place = Path(draft)
        given = subject(name, seed, folder, place)
        original = given.path.stat().st_size
        yield Row(name, "floats", given.score(bevel.load(given.path)), 1.0, MB=original / 1e6, speed=1.0)
        for method in methods:
            to, start = place / "quantized.onnx", time.process_time()
            try:
                METHODS[method](given, to)
            except (BevelError, RuntimeError, ValueError, InferenceError) as error:
                yield Row(name, method, refused=str(error).splitlines()[0])
                continue
            seconds = time.process_time() - start
            speed = ratio(given.path, to, given.calibration[0])
            score, size = given.score(bevel.load(to)), to.stat().st_size / 1e6
            yield Row(name, method, score, MB=size, speed=speed, seconds=seconds, **given.agreement(to))


def ratio(one: Path, other: Path, feed: Feed) -> float:
    """Return how much less processor time a model takes than another, on one thread, the two taking turns."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    sessions = [ort.InferenceSession(path, options, ["CPUExecutionProvider"]) for path in (one, other)]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for session, spent in zip(sessions, times, strict=True):
            start = time.thread_time()
            session.run(None, feed)
            spent.append(time.thread_time() - start)
    return median(times[0][1:]) / median(times[1][1:])


def table(name: str, found: Sequence[Row]) -> Table:
    """Return a row for every method, the means over seeds."""
    made = Table("method", *FORMATS, title=name)
    for method in dict.fromkeys(row.method for row in found):
        rows_of = [row for row in found if row.method == method]
        if rows_of[0].refused:
            made.add_row(method, rows_of[0].refused[:60])
            continue
        means = {field: float(np.mean([getattr(row, field) for row in rows_of])) for field in FORMATS}
        made.add_row(method, *(FORMATS[field].format(mean) * isfinite(mean) for field, mean in means.items()))
    return made


def verdicts(found: Sequence[Row]) -> Iterator[str]:
    """Say where Bevel's default keeps the agreement that it should."""
    for name in CONVOLUTIONAL:
        agreements = [row.agreement for row in found if (row.network, row.method) == (name, "bevel static, mse")]
        if agreements:
            said = "kept" if np.mean(agreements) >= GOAL else "MISSED"
            yield f"{said}: {name}: agreement {np.mean(agreements):.2%}, goal {GOAL:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="of the networks that are trained here")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of trained networks")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console, found = Console(width=110), list[Row]()
    for name in options.only:
        seeds = range(options.seeds if name.startswith("digits") else 1)
        here = [row for seed in seeds for row in rows(name, seed, options.folder, options.methods)]
        console.print(table(name, here))
        found += here
    console.print("\n".join(verdicts(found)))


if __name__ == "__main__":
    main()
