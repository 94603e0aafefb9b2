"""Modules to graphs and back: outputs, gradients and names of more than 60 architectures.

    pip install -r benchmarks/requirements-torch.txt     an environment of its own: torchvision needs another torch
    python -m benchmarks.torch_round_trip [--only TEXT]

Every module has random weights (seeded, every bias and statistic moved off its neutral value). Loaded, converted back
and compared: outputs in evaluation mode, relative to the largest; gradients of every parameter in training mode, with
dropout and stochastic depth set to zero, relative to the largest of that parameter's; and the names of the
`state_dict`. A row is kept if outputs agree to 1e-4, gradients to 1e-3, and no name is missing or new.

Gradients are taken in double precision, where the module runs in it: batch statistics of two small images are so
ill-conditioned that in single precision even the order of two factors moves them by percents.
"""

import argparse
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import bevel
from benchmarks.architectures import ARCHITECTURES, Architecture
from bevel.backends.torch import to_torch

OUTPUTS, GRADIENTS = 1e-4, 1e-3
# A gradient this far below the largest of the network is rounding: the bias before a normalisation has none at all.
NEGLIGIBLE = 1e-6
CHANCES = ("p", "drop_prob", "drop_rate", "dropout", "attention_dropout", "activation_dropout", "layerdrop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="architectures whose name contains this")
    parser.add_argument("--verbose", action="store_true", help="print tracebacks")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept, tried = 0, 0
    for name, architecture in ARCHITECTURES.items():
        if options.only in name:
            tried += 1
            kept += report(name, architecture, verbose=options.verbose)
    print(f"\n{kept} of {tried} kept: outputs to {OUTPUTS:g}, gradients to {GRADIENTS:g}, every name")


def report(name: str, architecture: Architecture, *, verbose: bool) -> bool:
    start = time.perf_counter()
    try:
        outputs, gradients, names = round_trip(architecture)
    except Exception as error:  # noqa: BLE001  a failure of one must not hide the others
        if verbose:
            traceback.print_exc()
        print(f"FAILED {name:28} {type(error).__name__}: {' '.join(str(error).split())[:160]}", flush=True)
        return False
    good = outputs <= OUTPUTS and gradients <= GRADIENTS and not names
    print(
        f"{'      ' if good else 'FAILED'} {name:28} outputs {outputs:8.1e}  gradients {gradients:8.1e}",
        f" {time.perf_counter() - start:4.0f} s",
        f"names {names[:4]}" if names else "",
        flush=True,
    )
    return good


def round_trip(architecture: Architecture) -> tuple[float, float, list[str]]:
    """Return the errors of outputs and gradients, and the names that are missing or new."""
    torch.manual_seed(0)
    module = perturbed(architecture.build()).eval()
    feed = architecture.feed()
    model = bevel.load(module, feed)
    back = to_torch(model)
    names = sorted(module.state_dict().keys() ^ back.state_dict().keys())
    with torch.no_grad():
        outputs = max(apart(a, b) for a, b in zip(results(back(**feed)), results(module(**feed)), strict=True))
    if architecture.double:
        module, back = module.double(), back.double()
        feed = {name: value.double() if value.is_floating_point() else value for name, value in feed.items()}
    return outputs, gradients(module, back, feed), names


def gradients(module: nn.Module, back: nn.Module, feed: Mapping[str, Tensor]) -> float:
    """Return the largest error of a parameter's gradient in training mode."""
    without_chance(module)
    found: list[dict[str, Tensor]] = []
    for each in (module, back):
        torch.manual_seed(0)
        each.train().zero_grad()
        parts = [result for result in results(each(**feed)) if result.is_floating_point() and result.requires_grad]
        torch.stack([(part * weights_like(part)).mean() for part in parts]).sum().backward()
        parameters = each.named_parameters(remove_duplicate=False)
        found.append({name: p.grad for name, p in parameters if p.grad is not None})
    mine, theirs = found[1], found[0]
    largest = max((gradient.abs().max().item() for gradient in theirs.values()), default=0.0)
    floor = NEGLIGIBLE * largest
    worst = 0.0
    for name, gradient in theirs.items():
        other = mine.get(name, torch.zeros_like(gradient))
        scale = max(gradient.abs().max().item(), floor, 1e-30)
        worst = max(worst, (other - gradient).abs().max().item() / scale)
    return worst


def weights_like(part: Tensor) -> Tensor:
    """Weights of a weighted mean: a plain mean has no gradient behind a normalisation."""
    generator = torch.Generator().manual_seed(part.numel())
    return torch.randn(part.shape, generator=generator, dtype=part.dtype)


def without_chance(module: nn.Module) -> None:
    for each in module.modules():
        for attribute in CHANCES:
            if isinstance(getattr(each, attribute, None), float):
                setattr(each, attribute, 0.0)


def perturbed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.05)
    return module


def results(output: Any) -> list[Tensor]:
    """Every tensor of an output, in order."""
    return list(flat(output))


def flat(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from flat(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from flat(value)


def apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not b.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


if __name__ == "__main__":
    main()
