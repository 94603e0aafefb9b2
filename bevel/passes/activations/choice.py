"""Which layers compute in 8 bits: those whose own output stays near, and of these as many as the outputs allow."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from bevel.errors import PromiseBroken
from bevel.passes.activations.errors import Twin, own_errors
from bevel.passes.activations.ledger import MOST_NAMED, Ledger
from bevel.passes.activations.limits import Trial, within
from bevel.passes.activations.sites import Site, at
from bevel.passes.base import Context
from bevel.passes.calibration import Feed

Twins: TypeAlias = Callable[[ir.Model, Sequence[Site]], Sequence[Twin]]
Write: TypeAlias = Callable[[ir.Model, Sequence[Site]], None]

# Rounding both operands of a product to 8 bits leaves an error of 1.3% where they are normally distributed, and each
# bit that outliers take away doubles it: beyond this, a layer has fewer than 5 of its 8 bits left.
MOST_OWN_ERROR = 0.1


def sound(
    model: ir.Model,
    found: Sequence[Site],
    feeds: Iterable[Feed],
    context: Context,
    twins: Twins,
    limit: float,
    ledger: Ledger,
) -> list[Site]:
    """Return the layers whose own output in 8 bits has a relative error of at most `limit` on some feeds."""
    errors = own_errors(model, [site.number for site in found], feeds, context.runtime, twins)
    kept = []
    for site in found:
        if errors[site.number] <= limit:
            kept.append(site)
            ledger.keep(site, errors[site.number])
        else:
            what = f"above max-layer-error={limit:g} ({errors[site.number]:.2g})"
            ledger.leave(site, f"its own output would have an error {what}")
    return kept


def limited(
    model: ir.Model, kept: Sequence[Site], context: Context, write: Write, ledger: Ledger, where: str
) -> list[Site]:
    """Return the layers with which the error of the outputs is within the run's limit, if it has one.

    Raises `PromiseBroken`, which names the most sensitive layers, if none is left.
    """
    limit = context.max_error
    if limit is None or not kept:
        return list(kept)
    trial = Trial(model, context, lambda clone, numbers: write(clone, at(clone, numbers)))
    chosen = within(trial, [site.number for site in kept], limit)
    by_number = {site.number: site for site in kept}
    dropped = [by_number[number] for number in chosen.dropped]
    if not chosen.kept:
        raise PromiseBroken(
            f"no layer can compute in 8 bits with an error of at most {limit:g}; "
            f"most sensitive: {', '.join(site.name for site in dropped[:MOST_NAMED])}",
            where=where,
            remedy="allow a larger --max-error, or leave this pass out",
        )
    for site in dropped:
        ledger.leave(site, f"the error of the outputs would be above {limit:g}")
    if dropped:
        ledger.remarks.append(
            f"error of the outputs: {chosen.before:.2g} with all of these layers in 8 bits, "
            f"{chosen.after:.2g} without the {len(dropped)} most sensitive ones"
        )
    return [by_number[number] for number in chosen.kept]
