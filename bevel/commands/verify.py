"""`bevel verify`: compare two models on the same inputs."""

import json

import click

from bevel.backends.onnxruntime import Level, Session
from bevel.commands.files import read
from bevel.errors import PromiseBroken
from bevel.passes.base import REASSOCIATION_RTOL, Exact, Preserving
from bevel.passes.calibration import Calibration
from bevel.passes.pipeline import FEEDS
from bevel.passes.synthesis import synthesize
from bevel.passes.verify import Verdict
from bevel.passes.verify import verify as compare_models
from bevel.report import verdict_dict


def run(
    *, reference: str, result: str, calibration: str | None, rtol: float | None, exact: bool, seed: int, as_json: bool
) -> None:
    """Carry out the command."""
    left, right = read(reference), read(result)
    if calibration is not None:
        feeds = Calibration.of(calibration, left)
    else:
        with Session(left, level=Level.AS_WRITTEN) as session:
            feeds = synthesize(left, seed, FEEDS, session.run)
    promise = Exact() if exact else Preserving(REASSOCIATION_RTOL if rtol is None else rtol)
    verdict = compare_models(left, right, feeds, promise)
    click.echo(json.dumps(verdict_dict(verdict), indent=2) if as_json else _text(verdict))
    if not verdict.kept:
        raise PromiseBroken(f"differs in {', '.join(each.output for each in verdict.broken)}", where=result)


def _text(verdict: Verdict) -> str:
    return "\n".join((*map(str, verdict.outputs), *verdict.roundings, f"compared on {verdict.feeds} inputs"))
