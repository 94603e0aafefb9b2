"""`bevel merge-delta`: thin out what fine-tuning added to a base, and merge several tuned models."""

from collections.abc import Sequence

import click

from bevel.commands.files import STREAM, check_places, read, say, write
from bevel.merging import merge_delta
from bevel.passes.merge_delta import MergeDelta
from bevel.passes.options import build
from bevel.passes.pipeline import Hooks


def run(
    *,
    tuned: Sequence[str],
    base: str,
    output: str,
    calibration: str | None,
    max_error: float | None,
    verify: bool,
    seed: int,
    quiet: bool,
    as_json: bool,
    only: Sequence[str],
    skip: Sequence[str],
    **options: object,
) -> None:
    """Carry out the command."""
    check_places([("output", output)])
    step = build(MergeDelta, {**options, "only": tuple(only), "skip": tuple(skip)})
    model, *siblings = (read(path) for path in tuned)
    report = merge_delta(
        model,
        read(base),
        *siblings,
        step=step,
        calibration=calibration,
        verify=verify,
        seed=seed,
        max_error=max_error,
        hooks=Hooks(log=say),
    )
    if not quiet:
        click.echo(report.json() if as_json else str(report), err=output == STREAM)
    write(model, output)
