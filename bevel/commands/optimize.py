"""`optimize`: run a pipeline on a file, and write the result once everything passed."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import onnx_ir as ir

from bevel.budget import Budget, Line
from bevel.commands.files import STREAM, check_folder, check_places, read, say, summarize, write
from bevel.errors import BudgetMissed, UsageError, nearest
from bevel.ir.cost import cost
from bevel.ir.plan import plan as plan_of
from bevel.passes.base import Pass, Progress, silent
from bevel.passes.pipeline import Hooks, Pipeline, from_recipe, optimize, parse
from bevel.report import Report, seconds_text, size
from bevel.writing import write_text, written

MEASURED_BYTES = 10**9
PROJECT = Path("pyproject.toml")
REPORT_FORMATS: dict[str, Callable[[Report], str]] = {".json": Report.json, ".md": Report.markdown}


def run(
    *,
    model: str,
    passes: str | None,
    recipe: str | None,
    output: str | None,
    calibration: str | None,
    reports: Sequence[str],
    plan: str | None,
    budgets: Sequence[str],
    max_error: float | None,
    verify: bool,
    latency: bool | None,
    seed: int,
    print_after: Sequence[str],
    time_passes: bool,
    bisect: int | None,
    dry_run: bool,
    keep_failed: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Carry out the command; every name and option is checked before the model is read."""
    pipeline = _pipeline(passes, recipe)
    limits = [Budget.parse(text) for text in budgets]
    _check_request(pipeline, output, reports, print_after, limits, dry_run=dry_run, verify=verify, as_json=as_json)
    check_places([("output", output), ("plan", plan), *(("report", path) for path in reports)])
    check_folder(keep_failed)
    source = read(model)
    with _progress(shown=not (quiet or as_json)) as progress:
        hooks = Hooks(
            log=say,
            progress=progress,
            after=partial(_print_after, print_after),
            bisect=bisect,
            keep_failed=Path(keep_failed) if keep_failed else None,
        )
        report = optimize(
            source,
            pipeline,
            calibration=calibration,
            verify=verify,
            seed=seed,
            max_error=max_error,
            measure_latency=_measures_latency(source, limits, latency, verify=verify),
            hooks=hooks,
        )
    lines = [limit.check(report) for limit in limits]
    _publish(report, lines, reports, quiet=quiet, as_json=as_json, to_stdout=output != STREAM)
    if time_passes:
        _print_times(report)
    if not all(line.kept for line in lines):
        _refuse(source, keep_failed, lines)
    if dry_run:
        return
    taken = plan_of(source) if plan else None  # what refuses to be planned leaves no file
    if output:
        _write(source, model, output, report, quiet=quiet)
    if plan and taken:
        taken.save(plan)


def _bytes(path: str) -> int:
    """Return the size of a file, 0 for a stream."""
    return Path(path).stat().st_size if Path(path).is_file() else 0


def _write(source: ir.Model, given: str, output: str, report: Report, *, quiet: bool) -> None:
    """Write the result, and say if the file grew though its weights became smaller.

    A file whose weights lie beside it says nothing.
    """
    before = _bytes(given)
    write(source, output)
    after, saved = _bytes(output), report.before.bytes - report.after.bytes
    whole = before >= report.before.bytes and after >= report.after.bytes
    if whole and saved > 0 and after > before > 0 and not quiet:
        more = f"new nodes and noted shapes take more than {size(saved)} of weights"
        say(f"{output}: {size(after)}, {size(before)} before: {more}")


def _measures_latency(model: ir.Model, limits: Sequence[Budget], asked: bool | None, *, verify: bool) -> bool:
    """Decide whether to run both models as deployed, for which ONNX Runtime copies their weights more than once."""
    if any(limit.metric == "latency" for limit in limits):
        return True
    if asked is not None:
        return asked
    small = cost(model).bytes <= MEASURED_BYTES
    if verify and not small:
        say("latency is not measured: the weights exceed 1 GB, and it takes a multiple of them; --latency does")
    return verify and small


def _pipeline(passes: str | None, recipe: str | None) -> Pipeline:
    """Take the pipeline from the command line, else the recipe, else the project in the working directory."""
    if passes is not None:
        return parse(passes)
    if recipe is not None:
        return from_recipe(recipe)
    if "[tool.bevel" in _text(PROJECT):  # also [[tool.bevel.pass]]
        return from_recipe(PROJECT)
    raise UsageError("no passes are given", remedy="write --passes 'simplify,...'; `bevel passes` lists them")


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _check_request(
    pipeline: Pipeline,
    output: str | None,
    reports: Sequence[str],
    print_after: Sequence[str],
    limits: Sequence[Budget],
    *,
    dry_run: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Refuse what cannot work before any work is done."""
    if output is None and not dry_run:
        raise UsageError("no output is given", remedy="write -o OUT.onnx (- is stdout), or --dry-run")
    if output == STREAM and as_json:
        raise UsageError("stdout cannot carry both the model and --json", remedy="write --report report.json")
    for path in reports:
        if Path(path).suffix not in REPORT_FORMATS:
            raise UsageError(f"a report ends in {' or '.join(REPORT_FORMATS)}", where=path)
    names = {step.name for step in pipeline} | {"all"}
    for name in print_after:
        if name not in names:
            raise UsageError(f"--print-after {name}: no such pass in the pipeline", remedy=nearest(name, names))
    if not verify and any(limit.metric == "error" for limit in limits):
        raise UsageError("an error budget needs verification", remedy="leave --no-verify away")


@contextmanager
def _progress(*, shown: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr while the block runs, if that is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield update


def _print_after(names: Sequence[str], step: Pass, model: ir.Model) -> None:
    if step.name in names or "all" in names:
        say(f"// after {step}\n{model}")


def _print_times(report: Report) -> None:
    for step in report:
        check = seconds_text(step.verify_seconds) if step.verdict else "not checked"
        say(f"{seconds_text(step.seconds):>9}  check {check:>9}  {step.text}")


def _publish(
    report: Report, lines: Sequence[Line], reports: Sequence[str], *, quiet: bool, as_json: bool, to_stdout: bool
) -> None:
    """Write the report where it was asked for: files, the job summary, and JSON or a table on the terminal."""
    for path in reports:
        write_text(path, REPORT_FORMATS[Path(path).suffix](report))
    summarize(report.markdown() + "".join(f"- {line}\n" for line in lines))
    if as_json:
        click.echo(report.json())
    elif not quiet:
        click.echo("\n".join((str(report), *map(str, lines))), err=not to_stdout)


def _refuse(result: ir.Model, folder: str | None, lines: Sequence[Line]) -> None:
    """Raise `BudgetMissed`; the result is kept in `folder` for a look, if one was given."""
    missed = "; ".join(str(line) for line in lines if not line.kept)
    if folder is not None:
        with written(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
        write(result, str(Path(folder) / "output.onnx"))
    raise BudgetMissed(missed, remedy="nothing was written" + (f" but {folder}/output.onnx" if folder else ""))
