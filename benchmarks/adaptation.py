"""Adapt the character GPT from Python to C++: S2FT on 3% of the channels, full fine-tuning and LoRA in one run.

    python -m benchmarks.adaptation [--seeds 2] [--steps 200] [--rates]

The new text is the headers that PyTorch ships (c10, torch/csrc), split by files; the old one is what the model was
trained on. After the same number of steps on the same batches, each result is merged into one ONNX model and judged in
ONNX Runtime, on held-out files of both. LoRA's rank is such that it trains as many numbers as S2FT, in the same layers,
and then the usual 8 in all of them. Learning rates were chosen, for each method, on validation files with a seed that
is not shown (`--rates` does that again).

Memory is what is kept for the backward pass (counted as autograd keeps it) and what gradients and AdamW hold. Step
times are medians of processor time on one thread, taken in turns, so their ratios hold on a busy machine, too.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Final

import onnx_ir as ir
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import bevel
from benchmarks import character_gpt as gpt
from benchmarks.adaptation_methods import Adaptation, Method, everything, kept_bytes, low_rank, selected
from benchmarks.recovery_data import Windows, encoded

PARTS: Final = {"test": 0, "validation": 1}  # of every tenth file; the others are trained on
FOLDERS: Final = ("c10", "torch/csrc")
LINEAR: Final = tuple(f"blocks.*.{name}.weight" for name in ("q", "k", "v", "out", "gate", "up", "down"))
DOWN: Final = "blocks.*.down.weight"
RATES: Final = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATE_SEED, RATE_STEPS = 100, 100
TIMED_STEPS = 15


@cache
def headers() -> dict[str, Tensor]:
    """Return the new text, as numbers, for training, validation and test."""
    root = Path(torch.__file__).parent / "include"
    files = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.h"))
    held = {part: encoded(files[place::10]) for part, place in PARTS.items()}
    return {"training": encoded([path for place, path in enumerate(files) if place % 10 not in PARTS.values()]), **held}


def new_text() -> list[gpt.Feed]:
    """Return unlabelled windows, by which channels can be chosen."""
    return gpt.calibration(text=headers()["training"])


METHODS: Final = (
    Method("full fine-tuning", everything, 3e-3),
    Method("S2FT, 3% of channels, random", selected(down=0.03), 1e-1),
    Method("S2FT, 3%, largest activations", selected(down=0.03, importance="activation", calibration=new_text), 3e-2),
    Method("LoRA rank 3, same layers", low_rank(3, DOWN), 3e-2),
    Method("LoRA rank 8, all layers", low_rank(8, *LINEAR), 1e-2),
)


def adapt(model: ir.Model, method: Method, seed: int, steps: int, lr: float) -> ir.Model:
    """Train for so many steps, and merge."""
    adaptation = method.start(model, seed)
    batches = Windows(headers()["training"], batches=steps)
    bevel.finetune(adaptation.module, None, batches, labels=-1, steps=steps, lr=lr, seed=seed)
    return adaptation.merged()


def loss(adaptation: Adaptation, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, following = batch
    return functional.cross_entropy(adaptation.module(ids).flatten(0, 1), following.flatten())


def step_times(adaptations: Sequence[Adaptation], batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the median processor time of a training step of each, taken in turns."""
    optimizers = [torch.optim.AdamW(trained(each), lr=1e-4) for each in adaptations]
    times: list[list[float]] = [[] for _ in adaptations]
    for batch in batches:
        for adaptation, optimizer, own in zip(adaptations, optimizers, times, strict=True):
            start = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            loss(adaptation, batch).backward()
            optimizer.step()
            own.append(time.process_time() - start)
    return [median(own) for own in times]


def trained(adaptation: Adaptation) -> list[torch.nn.Parameter]:
    return [each for each in adaptation.module.parameters() if each.requires_grad]


def choose_rates(model: ir.Model) -> None:
    """Print, for each method, the validation perplexity that each learning rate leads to."""
    table = Table("method", *(f"{rate:g}" for rate in RATES), title="perplexity of validation files by learning rate")
    for method in METHODS:
        results = [adapt(model, method, RATE_SEED, RATE_STEPS, rate) for rate in RATES]
        table.add_row(method.name, *(f"{gpt.perplexity(each, headers()['validation']):.3f}" for each in results))
    Console(width=120).print(table)


def rows(model: ir.Model, seeds: int, steps: int) -> Iterable[tuple[str, ...]]:
    """Yield the table's rows."""
    adaptations = [method.start(model, 0) for method in METHODS]
    batches = list(Windows(headers()["training"], batches=TIMED_STEPS))
    times = step_times(adaptations, batches)
    before = gpt.perplexity(model, headers()["test"]), gpt.perplexity(model)
    yield "before", "", "", "", "", "", f"{before[0]:.2f}", f"{before[1]:.2f}"
    for method, adaptation, took in zip(METHODS, adaptations, times, strict=True):
        activations = kept_bytes(adaptation.module, lambda: loss(adaptation, batches[0]))  # noqa: B023
        states = 3 * 4 * adaptation.trained  # a gradient and two moments of float32
        results = [adapt(model, method, seed, steps, method.lr) for seed in range(seeds)]
        yield (
            method.name,
            f"{method.lr:g}",
            f"{adaptation.trained:,}",
            f"{activations / 2**20:.1f}",
            f"{(activations + states) / 2**20:.1f}",
            f"{took / times[0]:.2f}x",
            "  ".join(f"{gpt.perplexity(each, headers()['test']):.2f}" for each in results),
            "  ".join(f"{gpt.perplexity(each):.2f}" for each in results),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", action="store_true", help="show what the learning rates were chosen by")
    parser.add_argument("--folder", type=Path, default=gpt.FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = gpt.model(folder=options.folder)
    if options.rates:
        choose_rates(model)
        return
    table = Table(
        *("method", "rate", "trained", "kept, MiB", "with optimizer", "step", "C++ (new)", "Python (old)"),
        title=f"{options.steps} steps on C++; perplexity of held-out files in ONNX Runtime, one figure a seed",
    )
    for row in rows(model, options.seeds, options.steps):
        table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
