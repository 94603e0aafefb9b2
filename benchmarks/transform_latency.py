"""What transforms cost at run time: nodes and latency before and after, in ONNX Runtime as deployed.

    python -m benchmarks.transform_latency [--only MiniLM ...] [--seconds 10]

Transforms that are folded into weights must cost nothing: the same nodes, and a latency that differs by what two copies
of the same model differ by, which the first row shows. A product that is left in the graph (`online`) costs what it
costs. Models take turns, run by run; medians.
"""

import argparse
from contextlib import ExitStack
from typing import Final

from rich.console import Console
from rich.table import Table

import bevel
from benchmarks.reorder_models import SUBJECTS, Subject
from bevel.backends.onnxruntime import Session, latencies

ONLINE: Final = {"character GPT": "*.down.weight", "MiniLM": "*.output.dense.weight"}
PIPELINES: Final = (
    "",
    "reorder-channels{by=key-norm block=32}",
    "reorder-channels{by=search format=int4 block=32}",
    "smooth",
    "equalize",
    "awq",
    "rotate",
    "rotate{kind=klt}",
)
MOST_RUNS: Final = 400


def row(subject: Subject, pipeline: str, seconds: float) -> tuple[str, ...]:
    before, after = subject.model(), subject.model()
    if pipeline:
        bevel.optimize(after, pipeline, calibration=subject.calibration())
    nodes = tuple(sum(1 for _ in model.graph.all_nodes()) for model in (before, after))
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session(model)) for model in (before, after)]
        first, second = latencies(sessions, subject.calibration()[0], runs=MOST_RUNS, seconds=seconds)
    return (
        pipeline or "nothing: the same model twice",
        f"{nodes[0]} / {nodes[1]}",
        f"{first:.2f}",
        f"{second / first:.3f}x",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring, for each row")
    options = parser.parse_args()
    console = Console(width=120)
    for name in options.only:
        table = Table("passes", "nodes", "before, ms", "after", title=f"{name}: what transforms cost")
        online = ONLINE.get(name)
        for pipeline in (*PIPELINES, *([f"rotate{{online={online}}}"] if online else [])):
            table.add_row(*row(SUBJECTS[name], pipeline, options.seconds))
        console.print(table)


if __name__ == "__main__":
    main()
