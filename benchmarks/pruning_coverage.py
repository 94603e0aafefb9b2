"""Structured pruning by half, without hints: Bevel and Torch-Pruning on the same networks, in the same run.

    pip install -r benchmarks/requirements-pruning.txt -e ".[torch]"     an environment of its own
    python -m benchmarks.pruning_coverage [--only PATTERN ...] [--exports FOLDER] [--results FILE [--resume]]

The networks are torchvision's classifiers, detectors (without boxes) and segmentation networks, tiny configurations of
transformers, and one of each of timm's families (`--all-timm`: all of them); random weights, two inputs each. Every
network and tool has a process of its own, with limits on time and memory, and one thread. A network is pruned by half
of the channels everywhere but at its outputs, with no word about heads or groups (`--hints` tells Torch-Pruning what
attributes say of them).

*runs*: the pruned network can be run. *equal*: something was pruned, and it answers what the original answers with
exactly the pruned places of its parameters set to zero, to 1e-3 of the largest output; if not in single precision, then
in double. Normalisations of which Torch-Pruning cuts a part take their statistics over the rest in the original as
well; Bevel cuts none. Bevel's own verification comes on top: a network on which it fails counts as not running.

*export* is Bevel's way from a module to a graph, *trace* Torch-Pruning's, *prune* what follows, *write* making the
pruned weights, which Bevel does when they are asked for (it counts in the comparison), *verify* Bevel's check. With
`--exports`, exports are kept in a folder, and how long each took.
"""

import argparse
import copy
import json
import multiprocessing
import multiprocessing.connection
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.architectures import Architecture, image
from benchmarks.pruning_coverage_models import networks
from benchmarks.pruning_coverage_tools import Row, with_bevel, with_torch_pruning

TOOLS = ("bevel", "torch-pruning")


def main() -> None:
    options = arguments()
    warnings.simplefilter("ignore")
    known = networks(every_timm=options.all_timm)
    chosen = [name for name in known if any(fnmatchcase(name, pattern) for pattern in options.only)]
    tools = TOOLS if options.tool == "both" else (options.tool,)
    rows = {(row.network, row.tool): row for row in read(options.results)} if options.resume else {}
    waiting = [(name, tool) for name in chosen for tool in tools if (name, tool) not in rows]
    preload()
    for row in run_all(waiting, known, options):
        rows[row.network, row.tool] = row
        print(line(row), flush=True)
        if options.results is not None:
            with options.results.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    print_report([rows[name, tool] for name in chosen for tool in tools if (name, tool) in rows])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of networks, as `torchvision/*`")
    parser.add_argument("--tool", choices=("both", *TOOLS), default="both")
    parser.add_argument("--exports", type=Path, help="keep exports in this folder, and take them from there")
    parser.add_argument("--results", type=Path, help="append each row to this file, as JSON lines")
    parser.add_argument("--resume", action="store_true", help="take the rows that are in --results as done")
    parser.add_argument("--limit", type=float, default=60, help="seconds for each of export or trace, and all else")
    parser.add_argument("--memory", type=float, default=12, help="gigabytes a process")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--hints", action="store_true", help="tell Torch-Pruning about heads")
    parser.add_argument("--all-timm", action="store_true", help="all networks of timm, not one a family")
    return parser.parse_args()


def preload() -> None:
    """Import what every process needs, once; nothing is computed before they part."""
    import timm  # noqa: F401
    import torch_pruning  # noqa: F401
    import torchvision  # noqa: F401
    import transformers.modeling_utils  # noqa: F401
    from onnxscript.function_libs import torch_lib  # noqa: F401

    import bevel.frontends.torch  # noqa: F401
    from bevel import registry
    from bevel.ir.coupling import load_rules

    load_rules()
    registry.passes()
    registry.importances()
    warm_up()


def warm_up() -> None:
    """Let both tools prune a small network once, so that no row pays for what is loaded on first use."""
    torch.set_num_threads(1)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)]
    small = Architecture(lambda: torch.nn.Sequential(*copy.deepcopy(layers)), image(8, name="input"))
    for prune in (lambda row: with_bevel(row, small, None), lambda row: with_torch_pruning(row, small, hints=False)):
        prune(Row("", ""))


def read(file: Path | None) -> Iterator[Row]:
    """Read the rows of an earlier run."""
    if file is None or not file.exists():
        return
    for text in file.read_text().splitlines():
        values = json.loads(text)
        yield Row(**{**values, "notes": tuple(values["notes"])})


@dataclass
class Job:
    """A process that works on one network with one tool."""

    row: Row
    process: Any
    answer: Any
    end: float


def run_all(
    waiting: Sequence[tuple[str, str]], known: dict[str, Architecture], options: argparse.Namespace
) -> Iterator[Row]:
    """Run every network and tool in a process of its own, `options.jobs` at a time."""
    queue, running = list(reversed(waiting)), list[Job]()
    while queue or running:
        while queue and len(running) < options.jobs:
            name, tool = queue.pop()
            running.append(started(Row(name, tool), known[name], options))
        multiprocessing.connection.wait([job.answer for job in running], timeout=1)
        for job in list(running):
            if (row := finished(job)) is not None:
                running.remove(job)
                yield row


def started(row: Row, architecture: Architecture, options: argparse.Namespace) -> Job:
    context = multiprocessing.get_context("fork")
    answer, mine = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(row, architecture, options, mine))
    process.start()
    mine.close()
    # Bevel's export has a limit of its own size: it is no part of what is compared.
    allowed = options.limit * (3 if row.tool == "bevel" else 1)
    return Job(row, process, answer, time.monotonic() + allowed)


def finished(job: Job) -> Row | None:
    """Return the row of a process that has ended, or has to."""
    row = job.row
    if job.answer.poll():
        try:
            row = job.answer.recv()
        except EOFError:
            row.reason = "the process was killed"
    elif job.process.is_alive() and time.monotonic() < job.end:
        return None
    else:
        row.reason = "did not end in time" if job.process.is_alive() else "the process was killed"
    job.process.kill()
    job.process.join()
    return row


def work(row: Row, architecture: Architecture, options: argparse.Namespace, answer: Any) -> None:
    """Do the work of one process: whatever goes wrong becomes the row's reason."""
    torch.set_num_threads(1)
    limit = int(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        if row.tool == "bevel":
            with_bevel(row, architecture, options.exports)
        else:
            with_torch_pruning(row, architecture, hints=options.hints)
    except Exception as error:  # noqa: BLE001  a failure of one must not hide the others
        row.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]
    answer.send(row)
    answer.close()


def line(row: Row) -> str:
    """Write a row."""
    cells = [
        f"{row.network:52} {row.tool:14}",
        "equal" if row.equal else "RUNS " if row.runs else "FAILS",
        f"{'' if row.error is None else format(row.error, '.1e'):>8}",
        f"{'' if row.removed is None else format(row.removed, '.0%'):>5} removed",
        *(
            f"{'' if value is None else format(value, '.2f'):>7} s"
            for value in (row.before, row.seconds, row.write, row.check)
        ),
        row.reason,
    ]
    return "  ".join(cells).rstrip()


def print_report(rows: Sequence[Row]) -> None:
    """Print totals, times and every failure."""
    sets = list(dict.fromkeys(row.network.partition("/")[0] for row in rows))
    print("\nMedians of the networks that are equal, and the slowest prune:")
    print(f"{'set':18} {'tool':14} networks  runs  equal  removed  export/trace  prune  write  verify  slowest")
    for name in (*sets, "all"):
        for tool in TOOLS:
            part = [row for row in rows if row.tool == tool and name in ("all", row.network.partition("/")[0])]
            if part:
                print(totals(name, tool, part))
    print_times(rows)
    print("\nNot equal:")
    for row in rows:
        if not row.equal:
            print(f"  {row.network:44} {row.tool:14} {row.reason}")


def totals(name: str, tool: str, rows: Sequence[Row]) -> str:
    good = [row for row in rows if row.equal]
    times = (
        middle(each) for each in zip(*((row.before, row.seconds, row.write, row.check) for row in good), strict=True)
    )
    before, prune, write, check = times if good else (0.0, 0.0, 0.0, 0.0)
    slowest = max((row.seconds or 0.0 for row in good), default=0.0)
    return (
        f"{name:18} {tool:14} {len(rows):8} {sum(row.runs for row in rows):5} {len(good):6}"
        f"  {middle(row.removed for row in good):7.0%}  {before:10.2f} s {prune:5.2f}s {write:5.2f}s"
        f" {check:6.2f}s {slowest:7.2f}s"
    )


def middle(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return median(known) if known else 0.0


def print_times(rows: Sequence[Row]) -> None:
    """Compare the times where both tools are right."""
    good = {tool: {row.network: row for row in rows if row.tool == tool and row.equal} for tool in TOOLS}
    both = [name for name in good["bevel"] if name in good["torch-pruning"]]
    if not both:
        return
    print(f"\nMedian seconds on the {len(both)} networks where both are equal:")
    ways: dict[str, tuple[Callable[[Row], float], Callable[[Row], float]]] = {
        "from a graph (Bevel), from a module (Torch-Pruning)": (pruning, everything),
        "neither export nor trace": (pruning, pruning),
        "export and trace included": (everything, everything),
    }
    for way, (mine, theirs) in ways.items():
        ours = [mine(good["bevel"][name]) for name in both]
        others = [theirs(good["torch-pruning"][name]) for name in both]
        ratio = median(others) / median(ours)
        sums = f"sums {sum(ours):.0f} {sum(others):.0f}"
        print(f"  {way:54} {median(ours):7.3f}  {median(others):7.3f}  {ratio:6.1f}x  {sums}")


def pruning(row: Row) -> float:
    return (row.seconds or 0.0) + (row.write or 0.0)


def everything(row: Row) -> float:
    return (row.before or 0.0) + pruning(row)


if __name__ == "__main__":
    sys.exit(main())
