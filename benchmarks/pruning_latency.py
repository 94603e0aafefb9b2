"""ResNet-50 and MobileNetV2 pruned to half their measured latency: is it reached, and what does it take?

    pip install -e ".[torch]"
    python benchmarks/pruning_latency.py [--share 0.5] [--options TEXT] [NAME ...]

Both at their published widths, with random weights and images of 224 x 224 (nothing is downloaded). Each is pruned by

    prune-channels{target="latency=0.5x"}

which measures candidates in ONNX Runtime, as deployed (all of its rewrites), in turns with the original. The result is
then measured anew, in turns with the original, in sessions of its own and in as many rounds as fit into half a minute:
`latency` is the median over rounds of the ratio of both, so that what else the machine does falls on both alike, with
the range that its quarters span. `share` is what of the reduction of multiply-accumulates arrives as
speed: 100% if half of the products take half of the time. The sessions use as many threads as Bevel's: two to four.

`cpu` is the same ratio of the processor's time in one thread, which other processes on the machine do not change: on a
busy machine, believe it rather than `latency`, which then is waiting for the most part.

The command fails if a latency is not within 5% of the target, or a share below 75%.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

import bevel
from bevel.backends.onnxruntime import THREADS, Session
from bevel.ir.cost import cost

CLOSE = 0.05
LEAST_SHARE = 0.75
SECONDS = 30.0
QUARTERS = 4


def normed(module: nn.Module, width: int, activation: type[nn.Module] | None) -> nn.Sequential:
    """A convolution with its normalisation and activation."""
    return nn.Sequential(module, nn.BatchNorm2d(width), *([activation()] if activation else []))


class Residual(nn.Module):
    """Adds what `branch` makes to the input, or to what `shortcut` makes of it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.last = branch, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.branch(x) + self.shortcut(x))


def bottleneck(inputs: int, width: int, stride: int) -> nn.Module:
    """A block of ResNet-50, the stride in its 3 x 3 convolution."""
    outputs = 4 * width
    branch = nn.Sequential(
        normed(nn.Conv2d(inputs, width, 1, bias=False), width, nn.ReLU),
        normed(nn.Conv2d(width, width, 3, stride, 1, bias=False), width, nn.ReLU),
        normed(nn.Conv2d(width, outputs, 1, bias=False), outputs, None),
    )
    same = inputs == outputs and stride == 1
    shortcut = nn.Identity() if same else normed(nn.Conv2d(inputs, outputs, 1, stride, bias=False), outputs, None)
    return Residual(branch, shortcut, nn.ReLU())


def resnet50() -> nn.Module:
    """He et al. 2015, Deep Residual Learning for Image Recognition."""
    layers: list[nn.Module] = [normed(nn.Conv2d(3, 64, 7, 2, 3, bias=False), 64, nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(bottleneck(inputs, width, first if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def inverted(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    """A block of MobileNetV2: expand, convolve each channel, project."""
    width = inputs * expansion
    branch = nn.Sequential(
        *([normed(nn.Conv2d(inputs, width, 1, bias=False), width, nn.ReLU6)] if expansion > 1 else []),
        normed(nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), width, nn.ReLU6),
        normed(nn.Conv2d(width, outputs, 1, bias=False), outputs, None),
    )
    return Residual(branch, nn.Identity(), nn.Identity()) if inputs == outputs and stride == 1 else branch


# Expansion, output channels, blocks, stride of the first one.
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks."""
    layers: list[nn.Module] = [normed(nn.Conv2d(3, 32, 3, 2, 1, bias=False), 32, nn.ReLU6)]
    inputs = 32
    for expansion, outputs, blocks, first in INVERTED:
        for block in range(blocks):
            layers.append(inverted(inputs, outputs, first if block == 0 else 1, expansion))
            inputs = outputs
    layers.append(normed(nn.Conv2d(inputs, 1280, 1, bias=False), 1280, nn.ReLU6))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2}


def run(name: str, share: float, options: str) -> bool:
    """Prune one network to a share of its latency, print a row, and say whether it is as promised."""
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    image = torch.randn(1, 3, 224, 224)
    original = bevel.load(module, {"input": image})
    model = original.clone()
    feed = {"input": image.numpy()}
    start = time.perf_counter()
    report = bevel.optimize(model, f'prune-channels{{target="latency={share}x"{options}}}', calibration=[feed])
    seconds = time.perf_counter() - start
    with Session(original) as before, Session(model) as after:
        rounds = in_turns((before, after), feed)
    latency, low, high = ratio(rounds)
    with Session(original, threads=1) as before, Session(model, threads=1) as after:
        alone, _, _ = ratio(in_turns((before, after), feed, clock=time.thread_time))
    macs = cost(model).macs / cost(original).macs
    efficiency = (1 / latency) / (1 / macs)
    print(
        f"{name:<14} {latency:>7.3f} {low:>6.3f} to {high:.3f} {median(rounds[:, 0]):>8.1f} ms"
        f" {alone:>6.3f} {macs:>7.3f} {efficiency:>6.0%} {cost(model).parameters / cost(original).parameters:>7.3f}"
        f" {seconds:>8.0f} s   {report.steps[0].error:.1e}",
        flush=True,
    )
    return abs(latency / share - 1) <= CLOSE and efficiency >= LEAST_SHARE


def in_turns(
    sessions: Sequence[Session], feed: dict[str, np.ndarray], clock: Callable[[], float] = time.perf_counter
) -> np.ndarray:
    """Return milliseconds [rounds, sessions], the sessions run one after the other in each round."""
    rounds = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        times = [clock()]
        for session in sessions:
            session.run(feed)
            times.append(clock())
        rounds.append(np.diff(times) * 1e3)
    return np.array(rounds[2:])


def ratio(rounds: np.ndarray) -> tuple[float, float, float]:
    """Return the median ratio, and the range of it over quarters of the rounds."""
    ratios = rounds[:, 1] / rounds[:, 0]
    quarters = [float(np.median(part)) for part in np.array_split(ratios, QUARTERS)]
    return float(np.median(ratios)), min(quarters), max(quarters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help="which networks")
    parser.add_argument("--share", type=float, default=0.5, help="of the latency")
    parser.add_argument("--options", default="", help="further options of the pass, as allocation=global")
    arguments = parser.parse_args()
    print(f"{THREADS} threads, load {os.getloadavg()[0]:.1f}; target latency={arguments.share}x {arguments.options}")
    print("network        latency  its quarters  original      cpu    MACs  share  params   pruning   error")
    options = f" {arguments.options}" if arguments.options else ""
    good = [run(name, arguments.share, options) for name in arguments.names]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
