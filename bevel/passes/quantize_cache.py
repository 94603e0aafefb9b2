"""Keep the caches of keys and values of a decoder in 8 or 4 bits between its steps."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import PromiseBroken, UsageError
from bevel.ir.caches import Cache, caches, unclear
from bevel.ir.coded import KEY, TYPES
from bevel.passes.activations.limits import Trial, within
from bevel.passes.activations.opset import raise_opset
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.caching.scales import Method, scales
from bevel.passes.caching.writing import write
from bevel.passes.calibration import Feed
from bevel.passes.patterns import asked
from bevel.passes.sentences import by_reason, listed

Array = np.ndarray[Any, Any]

MOST_NAMED: Final = 8


@dataclass(frozen=True)
class QuantizeCache(Pass):
    """Keep the caches of keys and values of a decoder in 8 or 4 bits between its steps.

    What it does: finds inputs to which the graph adds entries and which it gives out again, and makes both codes: of
    8 bits (signed bytes), or of 4 (two to a byte). This changes the interface, and is the only pass that does: a
    program keeps what it got and gives it back as before, in a quarter or an eighth of the bytes. The metadata of the
    file (`bevel.caches`, JSON) has the names, bits and scales, for who has a cache in floats. Scales are symmetric,
    one for each entry of each head (`scale=channel`) or one for the cache, and come from what the model gives out on
    calibration inputs: the largest magnitude (`max`), what leaves the least squared error (`mse`), or holds
    `percentile` per cent.

    With `emit=fast`, GroupQueryAttention reads and gives out codes itself, in ONNX Runtime's kernel; it is faster in
    steps of one token and slower for prompts. Other caches, and with `emit=portable` all, are decoded by standard
    operators where they come in, so that a step is no faster and floats exist while it runs. If the run has a limit for
    the error of the outputs (`--max-error`), the caches that do most to them stay in floats, as few as it takes; with
    `repair=false` they do not, and the run fails.

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
    emit: Annotated[Literal["fast", "portable"], Doc("codes in ONNX Runtime's kernel, or standard operators")] = "fast"
    repair: Annotated[bool, Doc("leave caches in floats until the run's limit for the error holds")] = True
    samples: Annotated[int, Range(1), Doc("how many samples to calibrate with")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of inputs or nodes to quantize; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of inputs or nodes to leave alone")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in TYPES:
            raise UsageError(f"bits={self.bits} is not possible", where=self.name, remedy="codes have 8 bits, or 4")

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Find caches and scales, leave out what loses too much, and write the others."""
        units, left = self._units(model)
        if not units:
            return Outcome(notes=tuple(_notes(units, left, self.bits, ["no caches of keys and values were quantized"])))
        remarks = []
        if raise_opset(model):
            remarks.append("the model has opset 13 now: what packs codes needs it")
        found = [cache for unit in units for cache in unit.caches]
        steps = scales(
            model,
            found,
            lambda: context.calibration.samples(self.samples),
            context.runtime,
            bits=self.bits,
            each=self.scale == "channel",
            method=self.calibration,
            percentile=self.percentile,
        )
        if context.calibration.made_up:
            remarks.append("the scales are those of made-up inputs: give real ones with --calibration")
        elif not any(_filled(feed, found) for feed in context.calibration):
            remarks.append("no input has entries in its caches, so that nobody saw the outputs after a first step")

        def put(clone: ir.Model, numbers: Sequence[int]) -> None:
            chosen = [unit for number, unit in enumerate(self._units(clone)[0]) if number in numbers]
            fast = [unit.node for unit in chosen if unit.fast]
            write(clone, [cache for unit in chosen for cache in unit.caches], steps, self.bits, fast)

        kept = list(range(len(units)))
        if self.repair and context.max_error is not None:
            kept = _limited(Trial(model, context, put), units, context.max_error, left, remarks)
        put(model, kept)
        return Outcome(notes=tuple(_notes([units[number] for number in kept], left, self.bits, remarks)))

    def _units(self, model: ir.Model) -> tuple[list["Unit"], dict[str, str]]:
        """Return what is quantized together, and why other caches stay as they are."""
        left = dict.fromkeys(unclear(model), "no operator that is known to add entries to it gives it out")
        wanted: dict[ir.Node, list[Cache]] = {}
        for cache in caches(model):
            why = self._unfit(cache)
            if why:
                left[cache.name] = why
            else:
                wanted.setdefault(cache.node, []).append(cache)
        each = self.scale == "channel"
        fast = {node for node, found in wanted.items() if self.emit == "fast" and _in_kernel(found, each=each)}
        return [Unit(node, found, node in fast) for node, found in wanted.items()], left

    def _unfit(self, cache: Cache) -> str:
        """Say why a cache stays as it is, nothing if it need not."""
        if not asked((cache.name, cache.node.name or ""), self.only, self.skip):
            return "not asked for"
        if self.bits == 4 and not cache.paired:
            return "codes of 4 bits are packed in pairs along the last axis, which has no fixed, even size"
        return ""


@dataclass(frozen=True)
class Unit:
    """Caches that one node adds to; with `fast`, it reads the codes itself."""

    node: ir.Node
    caches: Sequence[Cache] = field(default=())
    fast: bool = False


def _filled(feed: Feed, found: Sequence[Cache]) -> bool:
    """Tell whether there is something in the caches that a feed has."""
    return any(feed[cache.name] is not None and feed[cache.name].size for cache in found if cache.name in feed)


def _in_kernel(found: Sequence[Cache], *, each: bool) -> bool:
    """Tell whether ONNX Runtime's kernel takes these caches as codes: keys and values, given out as they are."""
    return len(found) == 2 and all(
        cache.grouped and cache.present in cache.node.outputs and (len(cache.channels) == 2 or not each)
        for cache in found
    )


def _limited(trial: Trial, units: Sequence[Unit], limit: float, left: dict[str, str], remarks: list[str]) -> list[int]:
    """Return the numbers of the units with which the error of the outputs is within the limit."""
    chosen = within(trial, range(len(units)), limit)
    dropped = [cache.name for number in chosen.dropped for cache in units[number].caches]
    if not chosen.kept:
        raise PromiseBroken(
            f"no cache can be codes with an error of at most {limit:g}; "
            f"most sensitive: {', '.join(dropped[:MOST_NAMED])}",
            where=QuantizeCache.name,
            remedy="allow a larger --max-error, more bits, or leave this pass out",
        )
    left.update(dict.fromkeys(dropped, f"the error of the outputs would be above {limit:g}"))
    if dropped:
        remarks.append(f"error of the outputs: {chosen.before:.2g} with all caches as codes, {chosen.after:.2g} so")
    return chosen.kept


def _notes(units: Sequence[Unit], left: dict[str, str], bits: int, remarks: Collection[str]) -> list[str]:
    """Say which caches are codes now, and which are not."""
    names = [cache.name for unit in units for cache in unit.caches]
    lines = []
    if names:
        fast = sum(len(unit.caches) for unit in units if unit.fast)
        lines = [
            f"{len(names)} of {len(names) + len(left)} caches are codes of {bits} bits, "
            f"{fast} of them in the attention's kernel: {listed(names, MOST_NAMED)}",
            f"these inputs and their outputs have type {TYPES[bits]} now; the metadata {KEY!r} has their scales",
        ]
    stay = [f"left in floats: {listed(each, MOST_NAMED)}: {why}" for why, each in by_reason(left).items()]
    return [*lines, *remarks, *stay]
