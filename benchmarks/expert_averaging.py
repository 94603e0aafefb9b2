"""A digits ViT trained as ever, and with `ExpertWeightAveraging`: mean accuracy and deviation over seeds of both.

    python -m benchmarks.expert_averaging [--seeds 5] [--epochs 30] [--experts 4] [--rate 0.75] [--every 2] [--validate]

It has width 32 and four layers. Both are trained on the same images in the same order from the same weights, for as
many steps, with AdamW. Only for the second, every other feed-forward layer is experts that are averaged a little after
each step; at the end it is dense again, and its weights must be the mean of the experts bit for bit, and its answers
those of the experts' mean. Accuracy is on 500 images that nothing was chosen by; with `--validate` it is on 300 others,
which neither trains on: the rate was chosen there among 0.001, 0.01, 0.1 and 0.75, on seed 100 alone and at twice the
width. `difference` is of the same seed; its standard error says whether it is more than chance. What was measured is
kept in FOLDER: a run that was stopped goes on where it was; delete a file to train anew.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

import numpy as np
import torch
from torch import nn

import bevel
from benchmarks.pruning_accuracy_tasks import digit_images
from benchmarks.recovery_data import Images, accuracy, digits
from benchmarks.recovery_models import ViT
from bevel.backends.torch.experts import averaging

LAYERS = [(f"blocks.{place}.up", f"blocks.{place}.down") for place in range(4)]
WIDTH, LR = 32, 4e-3
CHOOSING_SEED = 100
FOLDER: Final = Path(__file__).parents[1] / ".pytest_cache" / "expert_averaging"

Held = tuple[torch.Tensor, torch.Tensor]


def data(validate: bool) -> tuple[Images, Held]:
    """Return batches to train on, and images with labels to judge by."""
    if validate:
        parts = digit_images()
        assert isinstance(parts.training, Images)
        return parts.training, parts.validation
    training, held = digits()
    return Images(*training), held


def score(module: nn.Module, held: Held) -> float:
    with torch.no_grad():
        return 100 * accuracy(module.eval()(held[0]).numpy(), held[1].numpy())


def trained(seed: int, images: Images, held: Held, epochs: int, ewa: dict[str, float] | None) -> float:
    """Train one network, with the callback or without, and return its accuracy."""
    torch.manual_seed(seed)
    module = ViT(WIDTH)
    training = {"epochs": epochs, "lr": LR, "seed": seed}
    if ewa is None:
        bevel.finetune(module, None, images, labels=-1, **training)
        return score(module, held)
    callback = bevel.ExpertWeightAveraging(module, LAYERS, **ewa)
    bevel.finetune(module, None, images, labels=-1, progress=callback, **training)
    experts = {
        f"{name}.{key}": np.stack([getattr(expert, key).detach().double().numpy() for expert in part.linears])
        for name, part in callback.experts.items()
        for key in ("weight", "bias")
    }
    answers = module.eval()(held[0])
    callback.convert()
    for name, several in experts.items():
        assert np.array_equal(module.state_dict()[name].numpy(), several.mean(0).astype(np.float32)), name
    assert torch.equal(module(held[0]), answers)
    return score(module, held)


def kept(folder: Path, seed: int, train: Callable[[], float], **options: float) -> float:
    """Return an accuracy that was measured before, or train now and keep it."""
    name = "-".join(f"{key}{value:g}" for key, value in {"seed": seed, **options}.items())
    path = folder / f"{name}.txt"
    if not path.exists():
        found = train()
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{found}")
    return float(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--experts", type=int, default=averaging.EXPERTS)
    parser.add_argument("--rate", type=float, nargs="*", default=[averaging.RATE])
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, held = data(options.validate)
    folder = options.folder / ("validation" if options.validate else "test")
    seeds = [CHOOSING_SEED] if options.validate else range(options.seeds)
    found: dict[str, list[float]] = {"dense": []} | {f"rate {rate:g}": [] for rate in options.rate}
    for seed in seeds:
        run = partial(trained, seed, images, held, options.epochs)
        found["dense"].append(kept(folder, seed, partial(run, None), epochs=options.epochs))
        for rate in options.rate:
            ewa = {"experts": options.experts, "rate": rate, "every": options.every}
            accuracy = kept(folder, seed, partial(run, ewa), epochs=options.epochs, **ewa)
            found[f"rate {rate:g}"].append(accuracy)
        print(f"seed {seed}: " + ", ".join(f"{name} {scores[-1]:.2f}%" for name, scores in found.items()), flush=True)
    if len(seeds) > 1:
        summarize(found)


def summarize(found: dict[str, list[float]]) -> None:
    for name, scores in found.items():
        apart = [one - other for one, other in zip(scores, found["dense"], strict=True)]
        error = stdev(apart) / len(apart) ** 0.5
        print(
            f"{name:12} mean {fmean(scores):.2f}%, deviation {stdev(scores):.2f}; "
            f"difference {fmean(apart):+.2f} +- {error:.2f}"
        )


if __name__ == "__main__":
    main()
