"""What the order of channels is worth to block formats, alone and beside other transforms that keep the function.

    python -m benchmarks.reorder [--only planted ...]              both tables
    python -m benchmarks.reorder --part errors --format bfp4       block error of keys and weights, before and after
    python -m benchmarks.reorder --part quality --bits 4 3 2       quality with weights rounded to the nearest

Errors are squared errors over energies. Keys are cut into blocks along the head, weights along the input axis; a block
of a whole head shows that only an order across blocks can matter. Sorting pairs of half-split rotary positions cannot
bring the partners of a pair into one block; `tables=apart` lets each layer have an order of its own.

Quality: every matrix that an activation is multiplied by is replaced by what nearest rounding leaves of it, after the
passes of a row; embeddings and vectors stay. The first column has no rounding: it shows that the function stayed.
Rows whose pass is not installed are left out.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import mean
from typing import Final

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

import bevel
from benchmarks.reorder_models import SUBJECTS, Subject
from bevel.errors import EditRefused, UnsupportedModel
from bevel.ir.groups import analyse
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.fitting.layers import layers, rounded
from bevel.passes.formats import Format, block_format
from bevel.passes.reordering.errors import vector_error
from bevel.passes.reordering.held import Holdings
from bevel.passes.reordering.targets import Target
from bevel.passes.reordering.vectors import watch
from bevel.registry import passes

SORTS: Final = {
    "K-sort": "reorder-channels{{by=key-norm tables=apart}}",
    "search": "reorder-channels{{by=search format={format} block={block} tables=apart}}",
}
TRANSFORMS: Final = {
    "none": "",
    **SORTS,
    "smooth": "smooth{{alpha=0.5}}",
    "Hadamard": "rotate{{kind=hadamard}}",
    "KLT": "rotate{{kind=klt}}",
    "smooth, search": f"smooth{{{{alpha=0.5}}}},{SORTS['search']}",
    "Hadamard, search": f"rotate{{{{kind=hadamard}}}},{SORTS['search']}",
}
BLOCKS: Final = (128, 64, 32)
ALL: Final = 1 << 30  # keys


@dataclass(frozen=True)
class Kind:
    """A format in blocks of a size."""

    format: str
    block: int

    @property
    def fmt(self) -> Format:
        return block_format(self.format)

    def pipeline(self, text: str) -> str:
        return text.format(format=self.format, block=self.block)


def transformed(subject: Subject, pipeline: str) -> ir.Model:
    model = subject.model()
    if pipeline:
        bevel.optimize(model, pipeline, calibration=subject.calibration(), verify=False)
    return model


def weight_error(model: ir.Model, kind: Kind) -> float:
    """Return the mean over layers of what rounding along the input axis costs, as a share of the energy."""
    found = []
    for layer in layers(model):
        weight = layer.content().astype(np.float32)
        found.append(np.square(kind.fmt.round_trip(weight, 2, kind.block) - weight).sum() / np.square(weight).sum())
    return float(mean(map(float, found)))


def key_error(model: ir.Model, subject: Subject, kind: Kind) -> float:
    """Return the mean over layers of what rounding keys along the head costs, as a share of the energy."""
    analysis = analyse(model)
    holdings = Holdings(analysis)
    keys = [Target(group) for group in analysis.groups if any(held.keys for held in holdings.held(Target(group)))]
    context = Context(0, Calibration(subject.calibration, "a benchmark"), Execution())
    seen = [vectors for found in watch(analysis, keys, context, ALL).values() for vectors in found if vectors.kept]
    widths = [np.concatenate(vectors.kept) for vectors in seen]
    same = [np.arange(array.shape[2])[None] for array in widths]
    return mean(vector_error(kind.fmt, kind.block, array, places) for array, places in zip(widths, same, strict=True))


def errors(name: str, subject: Subject, format: str) -> Table:
    """Return the table of block errors: of keys in blocks of the head and its half and quarter, and of weights."""
    table = Table("what", "block", "before", *(f"{sort} / gain" for sort in SORTS), title=f"{name}: errors in {format}")
    made = cache(partial(transformed, subject))
    for what, blocks in (("keys", [subject.head, subject.head // 2, subject.head // 4]), ("weights", BLOCKS)):
        for block in blocks:
            kind = Kind(format, block)
            pipelines = [kind.pipeline(text) for text in ("", *SORTS.values())]
            before, *after = [error(what, made(each), subject, kind) for each in pipelines]
            gains = [f"{cell:.2e} / {before / cell:.2f}x" for cell in after]
            table.add_row(what, str(block), f"{before:.2e}", *gains)
    return table


def error(what: str, model: ir.Model, subject: Subject, kind: Kind) -> float:
    return key_error(model, subject, kind) if what == "keys" else weight_error(model, kind)


def rounded_to(model: ir.Model, kind: Kind) -> ir.Model:
    """Return a copy of a model whose layers have weights that are rounded to the nearest."""
    copy = model.clone()
    for value, layer in {layer.weight: layer for layer in layers(copy)}.items():
        assert value.const_value is not None
        found = layer.array(kind.fmt.round_trip(layer.content().astype(np.float32), 2, kind.block))
        value.const_value = ir.tensor(rounded(value.const_value, found), name=value.name)
    return copy


def quality(name: str, subject: Subject, rows: Sequence[str], kinds: Sequence[Kind]) -> Iterator[Table]:
    """Yield a table for each measure of quality: a row for each pipeline, a column for each format."""
    found: dict[str, dict[Kind | None, Mapping[str, float] | str]] = {}
    for row in rows:
        if installed(TRANSFORMS[row]):
            found[row] = dict(judged(subject, TRANSFORMS[row], kinds))
    for measure in subject.measures:
        columns = [f"{kind.format}/{kind.block}" for kind in kinds]
        table = Table("passes", "unrounded", *columns, title=f"{name}: {measure}")
        for row, cells in found.items():
            table.add_row(row, *(_cell(cells[kind], measure) for kind in (None, *kinds)))
        yield table


def judged(
    subject: Subject, text: str, kinds: Sequence[Kind]
) -> Iterator[tuple[Kind | None, Mapping[str, float] | str]]:
    """Yield the quality without rounding and in each format; what does not depend on the format runs once."""
    made: dict[str, ir.Model] = {}
    try:
        for kind in kinds:
            pipeline = kind.pipeline(text)
            if pipeline not in made:
                made = {pipeline: transformed(subject, pipeline)}
            if kind is kinds[0]:
                yield None, subject.quality(made[pipeline])
            yield kind, subject.quality(rounded_to(made[pipeline], kind))
    except (EditRefused, UnsupportedModel) as refusal:
        yield from ((kind, type(refusal).__name__) for kind in (None, *kinds))


def _cell(found: Mapping[str, float] | str, measure: str) -> str:
    return found if isinstance(found, str) else f"{found[measure]:.4g}"


def installed(text: str) -> bool:
    """Say whether the passes of a pipeline are there."""
    names = [part.partition("{")[0] for part in text.replace("}}", "").split(",") if part]
    return all(name in passes() for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--part", choices=("errors", "quality"))
    parser.add_argument("--format", default="bfp4", help="of the table of errors")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--blocks", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--rows", nargs="+", choices=TRANSFORMS, default=list(TRANSFORMS), help="of the quality")
    options = parser.parse_args()
    console = Console(width=120)
    kinds = [Kind(f"int{each}", block) for each in options.bits for block in options.blocks]
    for name in options.only:
        if options.part != "quality":
            console.print(errors(name, SUBJECTS[name], options.format))
        if options.part != "errors":
            for table in quality(name, SUBJECTS[name], options.rows, kinds):
                console.print(table)


if __name__ == "__main__":
    main()
