"""What a run did: one step per pass, and the totals; as a table, JSON or Markdown."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bevel.ir.cost import Cost

if TYPE_CHECKING:
    from rich.table import Table

    from bevel.passes.verify import Verdict

# Fused kernels, approximated activations and int8 accumulation stay below; a fusion that is wrong does not.
DRIFT_WORTH_SAYING = 1e-2
COLUMNS = ("pass", "promise", "error", "parameters", "bytes", "MACs", "time")


@dataclass(frozen=True)
class Step:
    """One pass: its text, its promise, the verdict on it (None when not verified), cost after it, seconds it took."""

    text: str
    promise: str
    verdict: "Verdict | None"
    cost: Cost
    seconds: float
    verify_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Return the largest relative error of any output against the promise's reference, NaN if not verified."""
        return self.verdict.error if self.verdict is not None else math.nan


@dataclass(frozen=True)
class Deployment:
    """How the model runs under ONNX Runtime's own optimizations; NaN where that was not measured.

    Latencies are median milliseconds. `drift` is the relative error that those optimizations bring into the result.
    """

    latency_before: float = math.nan
    latency_after: float = math.nan
    drift: float = math.nan


@dataclass(frozen=True)
class Report:
    """A run: where the model came from and how it ended up.

    `error` is the largest relative error of the final model against the original one, NaN when it was not measured.
    """

    before: Cost
    after: Cost
    steps: tuple[Step, ...] = ()
    error: float = math.nan
    deployment: Deployment = Deployment()
    inputs: str = ""
    seed: int = 0

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return "\n".join((capture.get().rstrip(), *self.remarks()))

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's rows as text: the input, a row per pass, the totals."""
        first = ("input", "", "", count(self.before.parameters), size(self.before.bytes), count(self.before.macs), "")
        return [first, *(_row(step) for step in self.steps), self._total()]

    def remarks(self) -> list[str]:
        """Return the sentences below the table: latency, inputs, what each pass noted, what weakens the proof."""
        lines = [f"verified on {self.inputs}"] if self.inputs else ["not verified"]
        before, after = self.deployment.latency_before, self.deployment.latency_after
        if not math.isnan(before):
            lines.append(f"latency {before:.3g} ms -> {after:.3g} ms ({factor(after, before)})")
        if self.deployment.drift > DRIFT_WORTH_SAYING:
            lines.append(f"ONNX Runtime's own optimizations change the result: error {self.deployment.drift:.1e}")
        if self.after.uncounted:
            lines.append(f"MACs of {self.after.uncounted} nodes are not counted: their shapes are unknown")
        return lines + [f"{step.text}: {note}" for step in self.steps for note in _notes(step)]

    def table(self) -> "Table":
        """Return a rich table of the run."""
        from rich.table import Table

        table = Table(show_header=True, header_style="bold", show_footer=False)
        for place, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if place < 2 else "right", overflow="fold")
        for row in self.rows():
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the run as a Markdown table, for a pull request or `$GITHUB_STEP_SUMMARY`."""
        rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows()]
        head = ["### bevel optimize", "", "| " + " | ".join(COLUMNS) + " |", "|---|---|" + "--:|" * 5]
        return "\n".join([*head, *rows, "", *(f"- {line}" for line in self.remarks())]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON types; numbers that are not finite become text, so that any reader accepts it."""
        return {
            "seed": self.seed,
            "inputs": self.inputs,
            "before": vars(self.before),
            "after": vars(self.after),
            "error": _number(self.error),
            "deployment": {name: _number(value) for name, value in vars(self.deployment).items()},
            "passes": [_step_dict(step) for step in self.steps],
        }

    def json(self) -> str:
        """Return the run as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def _total(self) -> tuple[str, ...]:
        before, after = self.before, self.after
        return (
            "total",
            "",
            error_text(self.error),
            factor(after.parameters, before.parameters),
            factor(after.bytes, before.bytes),
            factor(after.macs, before.macs),
            seconds_text(sum(step.seconds + step.verify_seconds for step in self.steps)),
        )


def count(number: int) -> str:
    """Write a count for people.

    >>> count(950), count(25_557_032)
    ('950', '25.6 M')
    """
    for unit, factor_ in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor_:
            return f"{number / factor_:.3g} {unit}"
    return str(number)


def size(number: int) -> str:
    """Write a number of bytes for people.

    >>> size(102_000_000)
    '102 MB'
    """
    return f"{count(number)}B" if number >= 1000 else f"{number} B"


def factor(after: float, before: float) -> str:
    """Write how a figure changed, as a multiple.

    >>> factor(1, 4)
    '0.25x'
    """
    return f"{after / before:.2f}x" if before else "-"


def error_text(error: float) -> str:
    """Write a relative error; a dash when it was not measured."""
    return "-" if math.isnan(error) else "0" if error == 0 else f"{error:.1e}"


def seconds_text(seconds: float) -> str:
    """Write a duration.

    >>> seconds_text(0.0123), seconds_text(12.3)
    ('12 ms', '12.3 s')
    """
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _row(step: Step) -> tuple[str, ...]:
    cost = step.cost
    figures = count(cost.parameters), size(cost.bytes), count(cost.macs)
    return (step.text, step.promise, error_text(step.error), *figures, seconds_text(step.seconds))


def _notes(step: Step) -> tuple[str, ...]:
    return step.notes + (step.verdict.notes if step.verdict is not None else ())


def _number(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def verdict_dict(verdict: "Verdict") -> dict[str, Any]:
    """Return a verdict as JSON types."""
    return {
        "kept": verdict.kept,
        "error": _number(verdict.error),
        "feeds": verdict.feeds,
        "outputs": [
            {
                "name": deviation.output,
                "exact": deviation.exact,
                "max_abs": _number(deviation.absolute),
                "error": _number(deviation.relative),
                "sqnr_db": _number(deviation.sqnr),
                "cosine": _number(deviation.cosine),
                "note": deviation.note,
            }
            for deviation in verdict.outputs
        ],
    }


def _step_dict(step: Step) -> dict[str, Any]:
    return {
        "pass": step.text,
        "promise": step.promise,
        "verdict": None if step.verdict is None else verdict_dict(step.verdict),
        "cost": vars(step.cost),
        "seconds": step.seconds,
        "verify_seconds": step.verify_seconds,
        "notes": list(_notes(step)),
    }
