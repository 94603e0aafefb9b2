"""Train a few channels and heads of a network: they are put together, so that what is trained is dense, then merged.

selection = bevel.select_finetune(model)              # 3% of the channels that the down projections read
bevel.finetune(selection.module, None, batches, labels=-1, lr=1e-3)
selection.adapter().save("task.safetensors")
bevel.save(selection.merged(), "tuned.onnx")          # in the original order, without cost at run time
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, get_args

import onnx_ir as ir

from bevel.errors import UsageError, nearest
from bevel.ir.edit import permute
from bevel.ir.groups import analyse
from bevel.modules import backend, check, feeds_of
from bevel.passes.base import SAMPLES, Context
from bevel.passes.calibration import Calibration, Source
from bevel.passes.execution import Execution
from bevel.passes.importance import lift
from bevel.passes.pipeline import calibration_of
from bevel.selection import draw
from bevel.selection.adapter import Adapter, Delta
from bevel.selection.chosen import choose
from bevel.selection.draw import End, Take
from bevel.selection.graph import with_slices
from bevel.selection.selected import Selection
from bevel.selection.units import units

__all__ = ["Adapter", "Delta", "Selection", "select_finetune"]

RANDOM: Final = "random"


def select_finetune(
    model: ir.Model,
    *,
    down: float = 0.03,
    up: float = 0.0,
    out: float = 0.0,
    value: float = 0.0,
    importance: str = RANDOM,
    end: End = "largest",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    calibration: Source | Calibration | None = None,
    samples: int = SAMPLES,
    verify: bool = True,
    seed: int = 0,
) -> Selection:
    """Return a module in which only a few channels and heads are trained, and what brings the result back.

    `down` is the share of all feed-forward channels whose weights are trained where they are read (rows of the down
    projection), `up` where they are written (columns of up and gate). `out` and `value` are the same for heads: the
    output and the value projection. A head is a key-value group with all its queries. Each share is of all channels,
    or heads, of the model together, at least one. They are drawn at random, apart for each of the four, or are those of
    the `largest` or `smallest` installed `importance`, which is scored on `samples` of `calibration`.

    The chosen ones are put side by side, each weight's in one range (a fused projection's in one for each part), by a
    permutation that does not change the function. Nothing but these slices has gradients: the backward pass keeps of
    the activations only what they need, and `bevel.finetune` trains nothing else. The model stays as it is.

    The module is run beside the model in ONNX Runtime, on `calibration` or made-up inputs, unless `verify` is false.
    Raises `EditRefused` where the model has no such channels or heads, and `UsageError` where PyTorch is not installed.

    Source: Yang et al. 2024, S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity.
    """
    shares = {"down": down, "up": up, "out": out, "value": value}
    _check(shares, end)
    torch, slicing = backend(), backend("slices")
    base, reordered = model.clone(), model.clone()
    analysis = analyse(reordered)
    found = units(analysis, only, skip)
    if importance == RANDOM:
        take: Take = draw.drawing(seed)
    else:
        context = Context(seed, calibration_of(calibration, model, seed), Execution(), samples=samples)
        take = draw.ranking(lift.score(importance, analysis, [unit.group for unit in found], context), end)
    chosen = choose(found, shares, take)
    taken = {each.unit.group.dim: each.order for each in chosen}
    slices = [part for each in chosen for part in each.slices(taken, analysis)]
    orders = {each.unit.group.name: each.order for each in chosen}
    permute(analysis, orders)
    graph, names = with_slices(reordered, slices)
    module = torch.to_torch(graph)
    slicing.freeze_others(module, names)
    feeds = feeds_of(model, calibration, seed) if verify else []
    if verify:
        check(model, module, feeds, "select_finetune")
    return Selection(module, orders, base, dict(zip(names, slices, strict=True)), feeds)


def _check(shares: Mapping[str, float], end: str) -> None:
    """Refuse options that make no sense."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UsageError(f"{name}={share}", where=name, remedy="it is a share: 0 to 1")
    if not any(shares.values()):
        raise UsageError("nothing is to be trained", where=", ".join(shares), remedy="set one of them above 0")
    if end not in get_args(End):
        raise UsageError(f"unknown end {end!r}", where="end", remedy=nearest(end, get_args(End)))
