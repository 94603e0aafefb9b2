"""What caches of keys and values in 8 and 4 bits cost and gain: perplexity, bytes, the time of a prompt and of a step.

    python -m benchmarks.quantization_cache [--only quality speed] [--windows 64] [--contexts 1024 4096]

Quality: the character GPT reads held-out files in windows of 128, half of each as a prompt, the other half character by
character, in ONNX Runtime. `same` is how often the likeliest character is the one that the model in floats finds
likeliest. Scales come from 32 windows of what the model was trained on.

Speed: a decoder with random weights (two layers of width 1024, 16 query heads on 4 key-value heads of width 64) reads a
prompt of 256 into empty caches, then single tokens behind contexts. A model takes turns with the one in floats of its
form; ratios are of processor time on one thread, above 1 is faster. `in place` has one buffer for past and present, as
programs that serve have; otherwise each step makes new caches, one longer.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import bevel
from benchmarks import character_gpt as gpt
from benchmarks import recovery_data as data
from benchmarks.quantization_cache_models import FORMS, caches_of, feed, random, trained
from bevel.backends.onnxruntime import Session
from bevel.passes.quantize_cache import QuantizeCache

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

MEASURED: Final = (
    QuantizeCache(),
    QuantizeCache(calibration="max"),
    QuantizeCache(scale="tensor"),
    QuantizeCache(emit="kernel"),
    QuantizeCache(emit="portable"),
    QuantizeCache(bits=4),
    QuantizeCache(bits=4, calibration="max"),
    QuantizeCache(bits=4, calibration="percentile", percentile=99.0),
    QuantizeCache(bits=4, scale="tensor"),
    QuantizeCache(bits=4, emit="kernel"),
    QuantizeCache(bits=4, emit="portable"),
)
TIMED: Final = {
    "grouped": tuple(QuantizeCache(bits=bits, emit=emit) for bits in (8, 4) for emit in ("fast", "kernel", "portable")),
    "appended": (QuantizeCache(), QuantizeCache(scale="tensor"), QuantizeCache(bits=4)),
}
PROMPT: Final = np.zeros((1, 256), np.int64)
TOKEN: Final = np.zeros((1, 1), np.int64)
CALIBRATION_WINDOWS: Final = 32
ROUNDS: Final = 16


def read(model: ir.Model, session: Session, ids: Array) -> tuple[Array, list[Feed]]:
    """Return the logits of one window, read as a prompt and character by character, and what was fed."""
    middle, length = ids.shape[1] // 2, ids.shape[1]
    past, feeds, logits = caches_of(model, 0), [], []
    for part in (slice(0, middle), *(slice(place, place + 1) for place in range(middle, length))):
        feeds.append(feed(ids[:, part], past, part.stop))
        answer = session.run(feeds[-1])
        logits.append(answer.pop("logits"))
        past = {name.replace("present", "past"): array for name, array in answer.items()}
    return np.concatenate(logits, 1), [feeds[0], feeds[-1]]


def answers(model: ir.Model, ids: Array) -> Array:
    """Return the logits of windows."""
    with Session(model, threads=1) as session:
        return np.concatenate([read(model, session, row[None])[0] for row in ids])


def calibration(model: ir.Model) -> list[Feed]:
    """Return feeds of windows that the model was trained on, with what caches hold."""
    rows = np.concatenate([each["ids"] for each in gpt.calibration(CALIBRATION_WINDOWS)])
    with Session(model, threads=1) as session:
        return [each for row in rows for each in read(model, session, row[None])[1]]


def quality(windows: int) -> Table:
    """Return how well the character GPT predicts."""
    model = trained("grouped")
    feeds, (ids, labels) = calibration(model), gpt.windows_of(data.source_code()[1], windows)
    expected = answers(model, ids)
    table = Table("caches", "bytes a token", "perplexity", "same", title=f"character GPT, {ids.size} characters")
    table.add_row("floats", f"{bytes_a_token(model)}", f"{data.perplexity(expected, labels):.4f}", "100%")
    for step in MEASURED:
        small = model.clone()
        bevel.optimize(small, step, calibration=feeds, verify=False)
        got = answers(small, ids)
        same = (got.argmax(-1) == expected.argmax(-1)).mean()
        table.add_row(str(step), f"{bytes_a_token(small)}", f"{data.perplexity(got, labels):.4f}", f"{same:.2%}")
    return table


def bytes_a_token(model: ir.Model) -> int:
    """Return how many bytes of caches there are for one token."""
    return sum(array.nbytes for array in caches_of(model, 1).values())


Run = Callable[[], object]


def speed(form: str, contexts: Sequence[int]) -> Table:
    """Return how much faster decoders with codes are than the one with floats."""
    model, columns = random(form), [f"behind {context}" for context in contexts]
    in_place = [f"{column}, in place" for column in columns] if form == "grouped" else []
    table = Table("caches", f"prompt of {PROMPT.size}", *columns, *in_place, title=f"{form}: times as fast as floats")
    table.columns[0].no_wrap = True
    for step in TIMED[form]:
        small = model.clone()
        bevel.optimize(small, step, calibration=[feed(PROMPT, caches_of(model, 0), PROMPT.size)], verify=False)
        with Session(model, threads=1) as floats, Session(small, threads=1) as codes:
            both = (model, floats), (small, codes)
            pairs = [[fresh(each, PROMPT, 0) for each in both]]
            pairs += [[fresh(each, TOKEN, context) for each in both] for context in contexts]
            pairs += [[bound(each, context) for each in both] for context in contexts if in_place]
            table.add_row(str(step), *(f"{faster(*pair):.2f}" for pair in pairs))
    return table


Opened = tuple[ir.Model, Session]


def fresh(opened: Opened, ids: Array, context: int) -> Run:
    """Return a run that makes new caches."""
    model, session = opened
    given = feed(ids, caches_of(model, context), context + ids.shape[1])
    return lambda: session.run(given)


def bound(opened: Opened, context: int) -> Run:
    """Return a run of one token that writes into the caches that it reads."""
    model, session = opened
    inner: ort.InferenceSession = session._session
    binding = inner.io_binding()
    for name, array in feed(TOKEN, caches_of(model, context + 1), context + 1).items():
        value = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        if name.startswith("past"):
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
    binding.bind_output("logits")
    return lambda: inner.run_with_iobinding(binding)


def faster(before: Run, after: Run) -> float:
    """Return the ratio of median processor times of a run, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for run, spent in zip((before, after), times, strict=True):
            start = time.thread_time()
            run()
            spent.append(time.thread_time() - start)
    return median(times[0]) / median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=("quality", "speed"), default=("quality", "speed"))
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    options = parser.parse_args()
    console = Console(width=120)
    if "quality" in options.only:
        console.print(quality(options.windows))
    for form in FORMS if "speed" in options.only else ():
        console.print(speed(form, options.contexts))


if __name__ == "__main__":
    main()
