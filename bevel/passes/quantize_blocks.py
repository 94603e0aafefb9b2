"""Keep weights in a few bits each, block by block."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.fitting.moments import moments
from bevel.passes.formats import Format, Scheme, any_format
from bevel.passes.formats.blocks import THREADS, WORTH_THREADS
from bevel.passes.formats.schemes import encoded
from bevel.passes.outputs import Outputs
from bevel.passes.quantization.axes import better_axes
from bevel.passes.quantization.branches import branched
from bevel.passes.quantization.cbq import CrossBlock
from bevel.passes.quantization.encoding import Branch, Encoder, Metric, Rounding
from bevel.passes.quantization.experts import Experts, apart, experts
from bevel.passes.quantization.forms import Form, Found, Storage
from bevel.passes.quantization.kernels import kernel
from bevel.passes.quantization.ledger import NAMED, Entry, Ledger, Result, units
from bevel.passes.quantization.made import Made
from bevel.passes.quantization.methods import LEARNT, quantized
from bevel.passes.quantization.mixture import Choice, Offer, feelings, mixture, summary, within
from bevel.passes.quantization.schemed import Schemed
from bevel.passes.quantization.standard import dequantized
from bevel.passes.quantization.tables import SLICES, Tabled
from bevel.passes.quantization.targets import Target, found
from bevel.passes.quantization.writing import Last, Shown, Stored, stored_lazily, write
from bevel.passes.sentences import listed

Array = np.ndarray[Any, Any]

# Above so many bytes of quantized weights, they are computed when they are read, one at a time, and not kept.
KEPT: Final = 1 << 28


@dataclass(frozen=True)
class QuantizeBlocks(Pass):
    """Keep weights in a few bits each, with a scale for every block of them.

    What it does: replaces the weights of MatMul, Gemm, Conv, ConvTranspose, LSTM, GRU, RNN, MoE and of Gather
    (embeddings) by codes in a `format` (`bevel formats` lists them) and the scales of blocks: of the inputs of an
    output (`axis=in`), of the outputs that an input has (`out`), of tiles of both, a block high and wide (`both`), or
    of the flat weight (`flat`); block 0 is the whole axis. With `axis=auto` each layer gets that of `in` and `out` with
    which the residual block around it errs less on the data.

    `nearest` takes scales that span each block. `clip` searches those of least squared error, zero points too. `hqq`
    fits them to an error that forgives outliers; it is for formats with zero points. `gptq` looks at the calibration
    data (made up if there are none): inputs not yet quantized make up for the errors of those that are, layer after
    layer, each with what the quantized layers before it left of its inputs; the fewer samples there are, the less they
    do. `adaround` learns of each weight instead whether it is rounded up or down, and then takes the best codes of one
    input after the other, or settles those of `gptq` likewise, whichever is better for an output. `cbq` goes on from
    there: the codes of two neighbouring residual blocks at a time, and their scales, go down the slope of the error
    that the output of both has, window after window, where it becomes less by that. It needs PyTorch; layers outside of
    blocks stay as they are. Tables of Gather, and what is read more than once, are then as with `clip`.

    Some formats have no blocks: `ptq161` has a sign for most weights, `vq` and `lr2vq` have codes for vectors of them,
    `pvq` has directions. They are small in the file alone; axis, block and rounding say nothing to them, but with
    `metric=inputs` (or `gptq`) errors of inputs with more energy count more.

    `branch=lorc` puts two thin matrices of a `rank` beside each weight, which make up for most of the error; `svdquant`
    takes what is largest in the weight out into them first, quantizes what is left, and fits both to each other. With
    `metric=inputs` it is the error of the layer's output on the calibration data that they make up for. They are stored
    in half precision and counted; kernels that read the same share the first of both with `svdquant`, and what is
    floats once it is loaded takes them in.

    `emit=fast` writes ONNX Runtime's MatMulNBits, GatherBlockQuantized and QMoE, in the variants that are fast;
    products round activations to 8 bits too. `portable` writes standard operators: DequantizeLinear from opset 21 on
    where ONNX Runtime fuses it. What has no such form is stored as bytes and tables: small in the file, plain floats
    once loaded. What several of these operators read is stored once. The opset stays as it is. A weight stays as it is
    where it is not finite, would not become smaller, or something else reads it too; a table of angles (it multiplies)
    does, too. Above 256 MB, `nearest` quantizes weights one at a time while the model is written.

    With several `formats` each weight gets the one that does the least damage to the model's outputs for so many
    `bits` an element in the mean, or for the fewest bytes below the run's limit for the error. Even with one format,
    weights stay in floats where the limit would be broken otherwise, as few as it takes; the notes say which.

    Promise: Lossy. If the error is above the limit whatever stays, the worst layers are named.

    Example: quantize-blocks{formats=uint2,uint4,uint8 bits=4.5 block=32 rounding=gptq}

    Source: Frantar et al. 2023, GPTQ; Golub, Heath and Wahba 1979 (how far samples are believed); Nagel et al. 2020,
    AdaRound; Ding et al. 2024, CBQ; Cheng et al. 2024, SignRound; Badri and Shaji 2023, HQQ; Rouhani et al. 2023,
    Microscaling Data Formats; Zhao et al. 2024, MixDQ (mixed formats); Yao et al. 2023, ZeroQuant-V2 (lorc); Li et al.
    2024, SVDQuant; Heo et al. 2024, Rethinking Channel Dimensions (AdaDim, `axis=auto`).
    """

    name: ClassVar[str] = "quantize-blocks"
    promise: ClassVar[Promise] = Lossy()

    format: Annotated[str, Doc("what an element becomes: int4, uint4, nf4, mxfp4 and so on")] = "int4"
    formats: Annotated[tuple[str, ...], Doc("instead: formats of which each weight gets the best for its bytes")] = ()
    bits: Annotated[float | None, Range(0), Doc("mean bits an element with several formats, scales included")] = None
    axis: Annotated[Literal["in", "out", "both", "flat", "auto"], Doc("what blocks run along")] = "in"
    block: Annotated[int, Range(0), Doc("elements that share a scale; 0 for the whole axis")] = 32
    rounding: Annotated[Rounding, Doc("how scales and codes are chosen")] = "nearest"
    branch: Annotated[Branch, Doc("what thin matrices beside codes make up for")] = "none"
    rank: Annotated[int, Range(1), Doc("how thin they are")] = 8
    metric: Annotated[Metric, Doc("whose error they make up for, or counts")] = "weights"
    emit: Annotated[Literal["fast", "portable"], Doc("operators of ONNX Runtime, or standard ones")] = "fast"
    samples: Annotated[int, Range(1), Doc("how many samples to take statistics over")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to quantize; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of weights or nodes to leave alone")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._names:
            any_format(name)
        if self.bits is not None and not self.formats:
            raise UsageError("bits are for several formats", where=self.name, remedy="give formats=uint4,uint8 too")

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize the weights in the order of the graph, then let their readers read the codes."""
        context = replace(context, samples=self.samples)
        axes = self._axes(model, context)
        choice, notes = self._choice(model, axes, context)
        ledger = self._write(model, choice, axes, context)
        along = [name for name, axis in axes.items() if axis == "out"]
        said = [f"{len(along)} of {len(axes)} have blocks along the outputs: {listed(along, NAMED)}"] if along else []
        return Outcome(notes=(*notes, *ledger.notes(model), *said), worst=ledger.worst)

    def _axes(self, model: ir.Model, context: Context) -> Mapping[str, str]:
        """Return what the blocks of each weight run along, where that is to be chosen."""
        fmt = any_format(self._names[0])
        if self.axis != "auto" or isinstance(fmt, Scheme):
            return {}

        def trial(target: Target, along: str, matrix: Array) -> Found:
            return fmt.encode(matrix, target.axis(along), self.block)

        return better_axes(model, found(model, self.only, self.skip)[0], trial, context)

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.rounding, self.branch, self.rank, self.metric)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.formats or (self.format,)

    def _choice(
        self, model: ir.Model, axes: Mapping[str, str], context: Context
    ) -> tuple[Choice | None, tuple[str, ...]]:
        """Return the format of each weight, None where all get the one, and what to say about it."""
        limit = context.max_error
        if self.formats and self.bits is None and limit is None:
            remedy = "give bits=4.5, or a limit for the error"
            raise UsageError("what the formats are chosen for is not given", where=self.name, remedy=remedy)
        if not self.formats and limit is None:
            return None, ()
        outputs = Outputs(model, context)

        def error(choice: Choice | None) -> float:
            trial = replace(self, rounding="clip") if self.rounding in LEARNT else self
            return outputs.error(lambda clone: trial._write(clone, choice, axes, context))

        if not self.formats and limit is not None and error(None) <= limit:
            return None, ()
        offers = self._offers(model, axes)
        mixed = mixture(model, offers, feelings(outputs, offers, context), context)
        choice = mixed.at(self.bits) if limit is None else within(mixed, self.bits, error, limit)
        if limit is not None and not choice:  # nothing holds: verification says so, and names the worst
            choice = mixed.at(self.bits)
        return choice, tuple(summary(choice, offers))

    def _offers(self, model: ir.Model, axes: Mapping[str, str]) -> list[Offer]:
        """Return each weight in all the formats in which it becomes smaller."""
        forms: dict[Target, dict[str, Storage[Any]]] = {}
        for target in found(model, self.only, self.skip)[0]:
            for name in self._names:
                form, _ = self._form(model, target, any_format(name), Made(axes))
                if form is not None and form.nbytes < target.tensor.nbytes:
                    forms.setdefault(target, {})[name] = form
        return [
            Offer(target, {name: form.nbytes for name, form in each.items()}, partial(self._without_data, target, axes))
            for target, each in forms.items()
        ]

    def _without_data(self, target: Target, axes: Mapping[str, str], name: str, matrix: Array) -> Found:
        rounding, fmt = "clip" if self.rounding in LEARNT else self.rounding, any_format(name)
        if isinstance(fmt, Scheme):
            return encoded(fmt, matrix, target.in_axis)
        return quantized(matrix, fmt, target.axis(self._along(target, axes)), self.block, rounding)

    def _along(self, target: Target, axes: Mapping[str, str]) -> str:
        """Return what the blocks of a weight run along."""
        return axes.get(target.name, "in") if self.axis == "auto" else self.axis

    def _write(self, model: ir.Model, choice: Choice | None, axes: Mapping[str, str], context: Context) -> Ledger:
        """Quantize weights in place, all of them or those that are chosen, and return what became of them."""
        targets, left = found(model, self.only, self.skip)
        made = Made(axes)
        ledger, planned = Ledger(left, repairs=self.branch != "none"), []
        for target in targets:
            name = self.format if choice is None else choice.get(target.name)
            if name is None:
                left[target.name] = (
                    "to keep the error below the limit" if self.bits is None else "for the outputs' sake"
                )
                continue
            form, why = self._form(model, target, any_format(name), made)
            if form is None or form.nbytes >= target.tensor.nbytes:
                left[target.name] = why if form is None else "it would not become smaller"
            else:
                planned.append(Entry(form, why))
        planned = list(self._paired(planned, made.tables))
        by_itself = self.rounding == "nearest" and self.branch == "none" and self.metric == "weights"
        if by_itself and sum(each.form.nbytes for each in planned) > KEPT:
            weights = self._streamed(planned, ledger)
        else:
            weights = self._kept(model, planned, ledger, context)
        write(model, list(weights))
        return ledger

    def _paired(self, planned: Sequence[Entry], tables: MutableMapping[bytes, ir.Value]) -> Iterator[Entry]:
        """Yield the plan without experts that QMoE cannot read since their other weight differs."""
        lonely = set(apart([each.form for each in planned if isinstance(each.form, Experts)]))
        for each in planned:
            form = each.form
            if form in lonely:
                form = Tabled(form.target, form.format, form.axis, form.block, tables=tables)
                yield Entry(form, "QMoE needs both weights of experts in the same bits and blocks")
            else:
                yield each

    def _form(
        self, model: ir.Model, target: Target, fmt: Format | Scheme, made: Made
    ) -> tuple[Storage[Any] | None, str]:
        """Return how a weight is to be stored, and why not as wished."""
        if isinstance(fmt, Scheme):
            if model.opset_imports.get("", 1) < SLICES:
                return None, "the opset cannot decode it"
            return Schemed(target, fmt, tables=made.tables), f"{fmt.name} is for files alone"
        form, why = self._plain(model, target, fmt, made)
        if form is None or self.branch == "none":
            return form, why
        return branched(form, self.rank, made.projections if self.branch == "svdquant" else None), why

    def _plain(self, model: ir.Model, target: Target, fmt: Format, made: Made) -> tuple[Form | None, str]:
        axis, opset = target.axis(self._along(target, made.axes)), model.opset_imports.get("", 1)
        wished: Form | str
        if self.emit == "fast":
            wished = (experts if target.stacked else kernel)(target, fmt, axis, self.block)
        else:
            wished = dequantized(target, fmt, axis, self.block, opset)
        if isinstance(wished, Form):
            return wished, ""
        if opset < SLICES:
            return None, f"opset {opset} cannot decode it"
        return Tabled(target, fmt, axis, self.block, tables=made.tables), wished

    def _streamed(self, planned: Sequence[Entry], ledger: Ledger) -> Iterator[Stored]:
        """Yield weights that are computed one at a time while the model is written."""
        last = Last()
        for entry in planned:
            ledger.entries.append(entry)
            yield stored_lazily(entry.form, partial(self._encoder.late, entry), last)

    def _kept(self, model: ir.Model, planned: Sequence[Entry], ledger: Ledger, context: Context) -> Iterator[Stored]:
        """Yield weights that are computed now: those that learn from data after the others."""
        learnt = [entry for entry in planned if self._encoder.learns(entry)]
        others = units([entry for entry in planned if entry not in learnt])
        in_turn = partial(self._in_turn, Lock())
        with Shown() as shown:
            with ThreadPoolExecutor(THREADS) as threads:
                for unit, results in zip(others, threads.map(in_turn, others), strict=True):
                    for entry, result in zip(unit, results, strict=True):
                        if learnt and result is not None:
                            shown.show(entry.target, result.found)
                        yield from ledger.take(entry, result)
            if learnt:
                yield from self._learnt(model, units(learnt), ledger, context, shown)

    def _learnt(
        self, model: ir.Model, planned: Sequence[Sequence[Entry]], ledger: Ledger, context: Context, shown: Shown
    ) -> Iterator[Stored]:
        """Yield the weights that learn from data, layer by layer, or once their windows have settled."""
        if self.rounding != "cbq":
            for entry, result in self._in_order(model, planned, context, shown):
                yield from ledger.take(entry, result)
            return
        settle = CrossBlock(model, context)
        results = dict(self._in_order(model, planned, context, shown))
        ledger.more.extend(settle(results, shown))
        for entry, result in results.items():
            yield from ledger.take(entry, result)

    def _in_order(
        self, model: ir.Model, planned: Sequence[Sequence[Entry]], context: Context, shown: Shown
    ) -> Iterator[tuple[Entry, Result | None]]:
        """Yield each layer's weight, its inputs being what the quantized layers before it give."""
        firsts = {unit[0].target.node: unit for unit in planned}
        layers = [unit[0].target.layer for unit in planned if unit[0].target.layer is not None]
        for layer, moment in moments(model, layers, context):
            unit = firsts[layer.node]
            results = self._encoder.together(unit, moment if moment.finite and moment.count else None)
            pairs = list(zip(unit, results, strict=True))
            shown.show_alone([(entry.target, result.found) for entry, result in pairs if result is not None])
            yield from pairs

    def _in_turn(self, turn: Lock, unit: Sequence[Entry]) -> Sequence[Result | None]:
        """Return weights in their forms; large ones, whose parts run side by side, wait for each other."""
        large = any(entry.target.tensor.size >= WORTH_THREADS for entry in unit)
        with turn if large else nullcontext():
            return self._encoder.together(unit)
