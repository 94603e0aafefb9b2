"""`bevel inspect`: a model's inputs, cost and groups, and the proof of the groups."""

import json
from typing import Any

import click
import onnx_ir as ir

from bevel.commands.files import read, say
from bevel.errors import PromiseBroken
from bevel.ir.cost import cost
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Group, groups
from bevel.ir.signature import signature
from bevel.passes.pipeline import optimize
from bevel.passes.shuffle_channels import ShuffleChannels, shuffled
from bevel.report import count, size


def run(model: str, *, check: bool, calibration: str | None, seed: int, as_json: bool) -> None:
    """Carry out the command."""
    read_model = read(model)
    found = groups(read_model)
    click.echo(json.dumps(_data(read_model, found), indent=2) if as_json else _text(read_model, found))
    if check:
        _check(read_model, found, calibration, seed)


def _text(model: ir.Model, found: list[Group]) -> str:
    total = cost(model)
    nodes = sum(1 for graph in model.graphs() for _ in graph)
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opset_imports.items()))
    head = (
        *(f"input   {wanted}" for wanted in signature(model)),
        *(f"output  {value.name}: {value.dtype}{value.shape or ''}" for value in model.graph.outputs),
        f"{nodes} nodes, {count(total.parameters)} parameters, {size(total.bytes)}, {count(total.macs)} MACs",
        f"{opsets}; {len(found)} groups",
    )
    return "\n".join((*head, *map(str, found)))


def _data(model: ir.Model, found: list[Group]) -> dict[str, Any]:
    return {
        "inputs": [str(wanted) for wanted in signature(model)],
        "outputs": [value.name for value in model.graph.outputs],
        "opsets": dict(model.opset_imports),
        "cost": vars(cost(model)),
        "groups": [_group(group) for group in found],
    }


_MOTIONS = ("scale", "rotate", "linear")


def _group(group: Group) -> dict[str, Any]:
    kinds = [kind.name.lower() for kind in Freedom if kind.name]
    return {
        "name": group.name,
        "size": group.size,
        "allows": [kind for kind in kinds if group.allows(kind)],
        "why_not": {kind: list(group.why(kind)) for kind in kinds if not group.allows(kind)},
        "motions": {kind: [str(each) for each in group.motions(kind)] for kind in _MOTIONS if group.allows(kind)},
        "members": [str(member) for member in group.members],
    }


def _check(model: ir.Model, found: list[Group], calibration: str | None, seed: int) -> None:
    """Permute all groups at once; if the outputs change, one at a time, to name those that are wrong."""
    chosen = shuffled(found)
    try:
        report = optimize(model, ShuffleChannels(), calibration=calibration, seed=seed, dry_run=True)
    except PromiseBroken as error:
        wrong = [group.name for group in chosen if not _holds(model, group, calibration, seed)]
        raise PromiseBroken(f"wrong groups: {', '.join(wrong)}", where=error.where, remedy=error.what) from error
    for line in report.remarks():
        say(line)
    click.echo(
        f"checked: {len(chosen)} groups permuted at random, error {report.steps[0].error:.1e} on {report.inputs}"
    )


def _holds(model: ir.Model, group: Group, calibration: str | None, seed: int) -> bool:
    try:
        optimize(model, ShuffleChannels(only=(group.name,)), calibration=calibration, seed=seed, dry_run=True)
    except PromiseBroken:
        return False
    return True
