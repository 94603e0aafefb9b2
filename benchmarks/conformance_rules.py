"""Execute every operator rule on the conformance data of the onnx package, and print what was tried.

    python -m benchmarks.conformance_rules

One line an operator type: in how many forms of cases a dimension of it was permuted and dropped, or why none was free.
"""

from time import perf_counter

from rich.console import Console
from rich.table import Table

from bevel.ir.coupling import known_rules
from tests.ir.cases import Tally, label, sweep

MOST_REASONS = 2


def main() -> None:
    start = perf_counter()
    tally = sweep()
    console = Console()
    console.print(table(tally))
    for disagreement in tally.disagreements:
        console.print(f"disagrees: {disagreement}", markup=False)
    console.print(summary(tally, perf_counter() - start))


def table(tally: Tally) -> Table:
    rows = Table("operator", "permuted", "selected", "why nothing is free")
    for operator in sorted(tally.seen):
        counts = str(tally.permuted_by[operator]), str(tally.selected_by[operator])
        rows.add_row(operator, *counts, "" if tally.permuted_by[operator] else why(tally, operator))
    return rows


def why(tally: Tally, operator: str) -> str:
    ruled = {label(*key) for key in known_rules()} | {"If", "Loop", "Scan"}
    if operator not in ruled:
        return "no rule"
    return "; ".join(sorted(tally.fixed.get(operator, ()))[:MOST_REASONS]) or "it has no dimension here that shows"


def summary(tally: Tally, seconds: float) -> str:
    return (
        f"{tally.forms} forms of cases, {len(tally.seen)} operator types, {len(tally.permuted_by)} with a dimension "
        f"permuted, {len(tally.selected_by)} with one dropped; {tally.permuted} dimensions permuted, "
        f"{tally.selected} dropped, {len(tally.disagreements)} disagreements, {len(tally.skipped)} not tried, "
        f"{seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
