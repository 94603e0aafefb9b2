"""Order channels so that every prefix is a good smaller network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import onnx_ir as ir

from bevel.ir import nested
from bevel.ir.edit import FREE_TO_DROP, permute
from bevel.ir.groups import Analysis, Group, analyse
from bevel.ir.names import Names
from bevel.ir.nested import Fit, Nest, checksum, entries_of, share
from bevel.ir.places import places
from bevel.passes.base import SAMPLES, Context, Doc, Outcome, Pass, Preserving, Promise, Range
from bevel.passes.choice import choose, left_out, outermost
from bevel.passes.fitting.layers import Layer, rounded
from bevel.passes.fitting.moments import Moments, moments
from bevel.passes.fitting.readers import readers
from bevel.passes.fitting.shift import bias_of, can_shift
from bevel.passes.importance import lift

Array = np.ndarray[Any, Any]

WIDTHS: Final = ("0.25", "0.5", "0.75")


@dataclass(frozen=True)
class NestChannels(Pass):
    """Order channels, heads and features so that every prefix of them is a good smaller network.

    What it does: sorts every group that allows it by importance, the most important entries first, and fits the layers
    that read it to some of its widths by least squares: `extract-member` then takes any mix of widths out of the one
    file, in milliseconds. The full network stays what it was; the fitted weights ride along as initializers that no
    node uses, which ONNX Runtime leaves out when it loads the file. Widths that nothing was fitted to can be taken too.

    Promise: Preserving.

    Example: nest{widths=0.25,0.5,0.75 importance=obs}

    Source: Devvrit et al. 2024, MatFormer, applied after training; the fit to each width is ours.
    """

    name: ClassVar[str] = "nest"
    promise: ClassVar[Promise] = Preserving()

    widths: Annotated[tuple[str, ...], Doc("shares of a group's entries that layers are fitted to")] = WIDTHS
    importance: Annotated[str, Doc("what scores the channels: an installed importance")] = "obs"
    samples: Annotated[int, Range(1), Doc("inputs to gather statistics from: rows of the first axis")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("groups or tensors to order, op:TYPE, depth:0-5; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("groups or tensors to leave alone, op:TYPE, depth:0-5")] = ()

    def __post_init__(self) -> None:
        """Check that the widths are shares."""
        super().__post_init__()
        for text in self.widths:
            share(text, self.name)

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Score, sort, fit."""
        context = replace(context, samples=self.samples)
        analysis = analyse(model)
        groups = outermost(analysis, choose(analysis, FREE_TO_DROP, self.only, self.skip))
        scores = lift.score(self.importance, analysis, groups, context)
        groups = [group for group in groups if group.name in scores]
        nested.remove(model)
        orders = {name: np.argsort(-values, kind="stable") for name, values in scores.items()}
        permute(analysis, orders)
        shares = [share(text, self.name) for text in self.widths]
        fits = list(_fitted(analysis, groups, shares, context))
        Nest({group.name: group.size for group in groups}, fits).write(model)
        notes = (f"{len(groups)} of {len(analysis.groups)} groups ordered, {len(fits)} weights fitted", *scores.notes)
        told = (*notes, *left_out(analysis.groups, FREE_TO_DROP))
        return Outcome(notes=told, where=places(analysis, orders))


def _fitted(analysis: Analysis, groups: Sequence[Group], shares: Sequence[float], context: Context) -> Iterator[Fit]:
    """Fit every layer that reads one group to its widths; layers that read several, or share a weight, are cut only."""
    model, names = analysis.model, Names(analysis.model)
    reads = {
        layer: found[0]
        for layer, found in readers(analysis, groups).items()
        if len(found) == 1 and len(layer.weight.uses()) == 1
    }
    fits = []
    for layer, moment in moments(model, list(reads), context):
        group, inputs = reads[layer]
        for width in dict.fromkeys(entries_of(group.size, part) for part in shares):
            if width < group.size and moment.finite:
                for value, array in _fit(layer, moment, inputs[width:].ravel()):
                    name = names.free(f"{value.name}.nested.{width}")
                    fits.append((Fit(group.name, width, value.name or "", name, checksum(value)), array))
    for fit, array in fits:
        nested.store(model, fit.stored, array)
        yield fit


def _fit(layer: Layer, moment: Moments, drop: Array) -> Iterator[tuple[ir.Value, Array]]:
    """Yield a layer's weight, and its bias if that makes up for something, as they are best without some inputs.

    The inputs that are dropped keep a place, with zeros in it.
    """
    shifted = bias_of(layer) if can_shift(layer) else None
    wide = layer.content()
    fitted = np.zeros_like(wide)
    keep = np.setdiff1d(np.arange(wide.shape[2]), drop)
    for matrix, best, order in zip(wide, fitted, moment.orders(shifted is not None), strict=True):
        best[:, keep] = order.refit(matrix, keep)
    assert layer.weight.const_value is not None
    yield layer.weight, rounded(layer.weight.const_value, layer.array(fitted))
    if shifted is not None:
        assert shifted.const_value is not None
        change = np.einsum("goi,gi->go", wide - fitted, moment.mean).ravel()
        yield shifted, rounded(shifted.const_value, shifted.const_value.numpy() + change)
