"""Keep the caches of keys and values of a decoder in 8 or 4 bits between its steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import PromiseBroken, UsageError
from bevel.ir.coded import TYPES
from bevel.ir.opset import raise_opset
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.caching.branching import branch
from bevel.passes.caching.kernel import check_kernel
from bevel.passes.caching.ledger import MOST_NAMED, notes
from bevel.passes.caching.limits import raised
from bevel.passes.caching.scales import Method, scales
from bevel.passes.caching.units import Plan, Unit, units
from bevel.passes.caching.writing import Choice, write
from bevel.passes.calibration import Feed
from bevel.passes.sentences import listed

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuantizeCache(Pass):
    """Keep the caches of keys and values of a decoder in 8 or 4 bits between its steps.

    What it does: finds inputs to which the graph adds entries and which it gives out again, and makes both codes: of
    8 bits (signed bytes), or of 4 (two to a byte). This changes the interface, and is the only pass that does: a
    program keeps what it got and gives it back as before, in a quarter or an eighth of the bytes. The metadata of the
    file (`bevel.caches`, JSON) has the names, bits and scales, for who has a cache in floats. Scales are symmetric,
    one for each entry of each head (`scale=channel`) or one for the cache, and come from what the model gives out
    on calibration inputs: the largest magnitude (`max`, the least error of the worst entry), what leaves the least
    squared error (`mse`), or holds `percentile` per cent.

    With `emit=kernel`, GroupQueryAttention reads and gives out codes itself, in ONNX Runtime's kernel, which is
    quicker for single tokens behind long contexts and slower for prompts. `fast` has a condition: up to 8 tokens go
    through that kernel, for more the cache is decoded, so that a prompt takes as long as before. Other caches, and
    with `emit=portable` all, are decoded by standard operators where they come in: steps take longer, and floats
    exist while one runs. If the run has a limit for the error of the outputs (`--max-error`), the caches that do
    most to them get 8 bits, or stay in floats, as few as it takes; with `repair=false` they do not, and the run
    fails. Caches count among the outputs: codes of 8 bits are off by up to 0.4% of what is largest in a channel, of
    4 bits by 7%, or more where that is clipped.

    Promise: Lossy. Outputs are compared with codes decoded at the interface; then the model with codes at its interface
    is run, and has to answer the same in every element.

    Example: quantize-cache{bits=4 calibration=max}

    Source: Hooper et al. 2024, KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization.
    """

    name: ClassVar[str] = "quantize-cache"
    promise: ClassVar[Promise] = Lossy()

    bits: Annotated[int, Range(4, 8), Doc("of a code: 8 or 4")] = 8
    scale: Annotated[Literal["channel", "tensor"], Doc("a scale for each entry of each head, or for the cache")] = (
        "channel"
    )
    calibration: Annotated[Method, Doc("how a scale is chosen")] = "mse"
    percentile: Annotated[float, Range(50, 100), Doc("per cent of the entries in the range, with percentile")] = 99.99
    emit: Annotated[Literal["fast", "kernel", "portable"], Doc("what attends: by the number of tokens, or one way")] = (
        "fast"
    )
    repair: Annotated[bool, Doc("more bits, or floats, until the run's limit for the error holds")] = True
    samples: Annotated[int, Range(1), Doc("how many samples to calibrate with")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of inputs or nodes to quantize; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of inputs or nodes to leave alone")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in TYPES:
            raise UsageError(f"bits={self.bits} is not possible", where=self.name, remedy="codes have 8 bits, or 4")

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Find caches and scales, leave out what loses too much, and write the others."""
        found, left = self._units(model)
        if not found:
            return Outcome(notes=tuple(notes(found, {}, left, ())))
        if any(unit.fast for unit in found):
            check_kernel(context.runtime)
        remarks = []
        if raise_opset(model):
            remarks.append("the model has opset 13 now: what packs codes needs it")
        remarks += _weaknesses(found, context)
        scale = cache(partial(self._scales, model.clone(), found, context))

        def put(clone: ir.Model, plan: Plan) -> None:
            each = [(unit, plan[number]) for number, unit in enumerate(self._units(clone)[0]) if number in plan]
            choices = [
                Choice(item, scale(bits)[item.name], bits, unit.fast) for unit, bits in each for item in unit.caches
            ]
            write(clone, choices)
            for unit, bits in each:
                if unit.fast and self.emit == "fast":
                    branch(clone, unit.node, unit.caches, bits)

        plan = {number: self.bits if unit.paired else 8 for number, unit in enumerate(found)}
        if self.repair and context.max_error is not None:
            plan, floats = raised(model, context, put, plan, context.max_error)
            self._leave([name for number in floats for name in found[number].names], plan, context.max_error, left)
        put(model, plan)
        return Outcome(notes=tuple(notes(found, plan, left, remarks)))

    def _units(self, model: ir.Model) -> tuple[list[Unit], dict[str, str]]:
        return units(model, self.only, self.skip, fast=self.emit != "portable", each=self.scale == "channel")

    def _leave(self, names: Sequence[str], plan: Plan, limit: float, left: dict[str, str]) -> None:
        """Note caches that stay in floats, of which there must not be all."""
        if not plan:
            raise PromiseBroken(
                f"no cache can be codes with an error of at most {limit:g}; "
                f"most sensitive: {listed(names, MOST_NAMED)}",
                where=self.name,
                remedy="allow a larger --max-error, or leave this pass out",
            )
        left.update(dict.fromkeys(names, f"the error of the outputs would be above {limit:g}"))

    def _scales(self, model: ir.Model, found: Sequence[Unit], context: Context, bits: int) -> Mapping[str, Array]:
        return scales(
            model,
            [item for unit in found for item in unit.caches],
            lambda: context.calibration.samples(self.samples),
            context.runtime,
            bits=bits,
            each=self.scale == "channel",
            method=self.calibration,
            percentile=self.percentile,
        )


def _weaknesses(found: Sequence[Unit], context: Context) -> list[str]:
    """Say what weakens scales, and the evidence."""
    if context.calibration.made_up:
        return ["the scales are those of made-up inputs: give real ones with --calibration"]
    names = [name for unit in found for name in unit.names]
    if not any(_filled(feed, names) for feed in context.calibration):
        return ["no input has entries in its caches, so that nobody saw the outputs after a first step"]
    return []


def _filled(feed: Feed, names: Sequence[str]) -> bool:
    """Tell whether there is something in the caches that a feed has."""
    return any(isinstance(feed.get(name), np.ndarray) and feed[name].size for name in names)
