"""The results of `benchmarks.experts`: kept as they come, and put into the table of docs/experts.md."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".pytest_cache" / "experts"


@dataclass(frozen=True)
class Result:
    """What a line of the benchmark found: `sparsity` percent of the hidden entries rest, 0 for the dense model.

    `active` is the share of the feed-forward layers' parameters, those of routers included, that a token runs.
    """

    sparsity: int
    name: str
    active: float
    error: float
    quality: float

    def __str__(self) -> str:
        return f"  {self.name:40} {100 * self.active:5.1f}% {self.error:9.4f} {self.quality:9.3f}"


class Kept:
    """The results of one model in a file, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.results = {(each.sparsity, each.name): each for each in (Result(**json.loads(line)) for line in lines)}

    def add(self, result: Result) -> None:
        self.results[result.sparsity, result.name] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            print(json.dumps(asdict(result)), file=file)


def table(kept: Kept, names: Iterable[str], sparsities: Sequence[int]) -> list[str]:
    """Return a table in Markdown: a line for each name, and error, quality and active share for each sparsity."""
    heads = [f"{part} {each}%" for each in sparsities for part in ("active", "error", "quality")]
    lines = [_line(["what", *heads]), _line(["---"] * (1 + len(heads)))]
    for name in names:
        found = [kept.results.get((sparsity, name)) for sparsity in sparsities]
        if any(found):
            lines.append(_line([name, *(cell for each in found for cell in _cells(each))]))
    return lines


def _cells(result: Result | None) -> list[str]:
    if result is None:
        return ["", "", ""]
    return [f"{100 * result.active:.1f}%", f"{result.error:.4f}", f"{result.quality:.4g}"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
