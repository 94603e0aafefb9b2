"""Thin out what fine-tuning added to a base, and put it back: one tuned model, or several merged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.content import content
from bevel.ir.lineage import Relative, lineage, set_lineage
from bevel.passes.base import SAMPLES, Context, Doc, Lossy, Outcome, Pass, Promise, Range
from bevel.passes.deltas.delta import Tuned, bits, merged, seed_of
from bevel.passes.deltas.rescale import analytic, label_free
from bevel.passes.patterns import asked


@dataclass(frozen=True)
class MergeDelta(Pass):
    """Drop most of what fine-tuning changed, at random, and rescale the rest; merge several tuned models so.

    What it does: of the difference between the weights and those of the base that the model was tuned from, every
    entry of a matrix or kernel is dropped with probability `drop`, and what stays is divided by `q`. Sparse deltas take
    little room beside the base, and those of several models tuned from one base disturb each other less when added.
    `rescale` chooses `q`: `dare` takes 1 - drop, which keeps the expectation of every weight; `analytic` takes, tensor
    by tensor, the q of the least expected squared error, in closed form from the second moment of the layer's inputs
    and the number of layers (DAREx minimises a tail bound of the same difference; the algebra is in
    `bevel.passes.deltas.delta`); `label-free` takes the one q for all at which the model's own outputs change least on
    unlabelled inputs, found by running it.

    Initializers of the model and its base are matched by the parameter that they came from, else by name; what has no
    counterpart of the same shape refuses the pass unless it is skipped. Vectors and single numbers (biases, gains) are
    not thinned out: they stay as tuned, or are merged whole. Integers are left alone. Tensors that no layer multiplies
    by (embeddings) take DARE's q under `analytic`. New weights are computed when the model is saved or run.

    `bevel.merge_delta(model, base)` and `bevel merge-delta` tell the model its base; without one the pass refuses.

    Promise: Lossy. The reported error is the difference to the tuned model as it was given.

    Example: merge-delta{drop=0.9 rescale=label-free}

    Source: Yu et al. 2024, Language Models are Super Mario (DARE); Deng et al. 2025, DARE the Extreme (DAREx).
    """

    name: ClassVar[str] = "merge-delta"
    promise: ClassVar[Promise] = Lossy()

    drop: Annotated[float, Range(0, 0.9999), Doc("share of each delta's entries to drop")] = 0.9
    rescale: Annotated[
        Literal["dare", "analytic", "label-free"], Doc("how to choose what the kept entries are divided by")
    ] = "dare"
    scale: Annotated[float, Range(0), Doc("what the merged deltas are multiplied with")] = 1.0
    samples: Annotated[int, Range(1), Doc("how many samples analytic and label-free look at")] = SAMPLES
    only: Annotated[tuple[str, ...], Doc("patterns of initializers to thin out; everything if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of initializers to leave as tuned")] = ()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Match the initializers, choose every `q`, and write lazy sums."""
        family = lineage(model)
        if family is None:
            raise EditRefused(
                "the model does not know what it was tuned from",
                where=self.name,
                remedy="bevel.merge_delta(model, base), or bevel merge-delta TUNED.onnx --base BASE.onnx",
            )
        context = replace(context, samples=self.samples)
        base = Relative(family.base, "the base")
        tuned = (model, *family.siblings)
        targets = self._targets(model, moved=len(tuned) > 1 or self.scale != 1)
        deltas = [_Delta(number, each, base, targets) for number, each in enumerate(tuned)]
        chosen = [self._chosen(delta, context) for delta in deltas]
        parts = {
            value: [delta.part(value, q, context.seed) for delta, (q, _) in zip(deltas, chosen, strict=True)]
            for value in targets
        }
        sources = {value: base.counterpart(value) for value in targets}
        for value in targets:
            value.const_value = self._sum(value, sources[value], parts[value], self.scale)
        set_lineage(model, None)
        return Outcome(notes=(*self._summary(model, targets), *(note for _, notes in chosen for note in notes)))

    def _targets(self, model: ir.Model, *, moved: bool) -> list[ir.Value]:
        """Return the initializers that change: matrices, and vectors too where they are `moved`."""
        found = [value for value in model.graph.initializers.values() if self._wanted(value)]
        return [value for value in found if moved or _is_matrix(value)]

    def _wanted(self, value: ir.Value) -> bool:
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or value.is_graph_input():
            return False
        return asked((value.name or "",), self.only, self.skip)

    def _chosen(self, delta: "_Delta", context: Context) -> tuple[Mapping[str, float], tuple[str, ...]]:
        """Return the `q` of each matrix of a tuned model by the name that it has there, and what there is to say."""
        dare = dict.fromkeys(delta.matrices, 1 - self.drop)
        if self.rescale == "dare":
            return dare, (f"{delta.called}: kept entries divided by q = {1 - self.drop:.3g}",)
        if self.rescale == "analytic":
            found = analytic(delta.model, delta.changes(), self.drop, context)
            return {**dare, **found}, (f"{delta.called}: {_range(found)}",)
        thinned = partial(self._thinned, delta, context.seed)
        tried = label_free(delta.model, thinned, self.drop, context)
        best = min(tried, key=lambda q: tried[q])
        listed = ", ".join(f"{error:.3g} at {q:.3g}" for q, error in sorted(tried.items()))
        return dict.fromkeys(dare, best), (f"{delta.called}: q = {best:.3g}; output error by q: {listed}",)

    def _thinned(self, delta: "_Delta", seed: int, q: float, draw: int) -> ir.Model:
        """Return a tuned model alone with its delta thinned out."""
        copy = delta.model.clone()
        every = dict.fromkeys(delta.matrices, q)
        for value in delta.targets:
            if _is_matrix(value):
                own = copy.graph.initializers[delta.name(value)]
                part = delta.part(value, every, seed + draw)
                own.const_value = self._sum(own, delta.base.counterpart(value), [part], 1.0)
        return copy

    def _sum(self, value: ir.Value, base: ir.Value, parts: Sequence[Tuned], scale: float) -> ir.TensorProtocol:
        source, tensor = base.const_value, value.const_value
        assert source is not None and tensor is not None
        dtype, drop, name = tensor.dtype, self.drop if _is_matrix(value) else 0.0, value.name

        def compute() -> ir.TensorProtocol:
            return ir.Tensor(merged(source, parts, drop, scale, dtype), dtype=dtype, name=name)

        return ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)

    def _summary(self, model: ir.Model, targets: Sequence[ir.Value]) -> tuple[str, ...]:
        matrices = [value.const_value for value in targets if value.const_value is not None and _is_matrix(value)]
        entries = sum(tensor.size for tensor in matrices)
        stored = sum(tensor.size * bits(self.drop, tensor.dtype.bitwidth) for tensor in matrices) / 8
        left = len(model.graph.initializers) - len(targets)
        return (
            f"{len(matrices)} tensors, {entries} entries: about {self.drop:.4g} of each delta dropped",
            f"the file is as large as before; beside the base, the delta takes about {stored / 1e6:.3g} MB",
            f"{left} initializers left as tuned: integers, vectors of a single model, what was skipped",
        )


class _Delta:
    """What one tuned model adds to the base, initializer by initializer of the model that is edited."""

    def __init__(self, number: int, model: ir.Model, base: Relative, targets: Sequence[ir.Value]) -> None:
        self.called = f"tuned model {number + 1}"
        self.model = model
        self.base = base
        self.targets = tuple(targets)
        self._number = number
        own = Relative(model, self.called)
        found = {value: value if number == 0 else own.counterpart(value) for value in targets}
        self._names = {value: twin.name or "" for value, twin in found.items()}
        self._tensors = {value: _tensor(twin) for value, twin in found.items()}
        self._bases = {value: _tensor(base.counterpart(value)) for value in targets}

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of the matrices in this model."""
        return tuple(self.name(value) for value in self.targets if _is_matrix(value))

    def name(self, value: ir.Value) -> str:
        """Return what an initializer is called in this model."""
        return self._names[value]

    def part(self, value: ir.Value, q: Mapping[str, float], seed: int) -> Tuned:
        """Return this model's part of a sum; vectors are not divided."""
        return Tuned(self._tensors[value], q.get(self.name(value), 1.0), seed_of(value.name or "", seed, self._number))

    def changes(self) -> dict[str, Callable[[], Any]]:
        """Return the matrices' deltas by name, read when they are called."""
        return {self.name(value): partial(self._change, value) for value in self.targets if _is_matrix(value)}

    def _change(self, value: ir.Value) -> Any:
        with content(self._tensors[value]) as tuned, content(self._bases[value]) as base:
            return tuned.astype(np.float64) - base.astype(np.float64)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _is_matrix(value: ir.Value) -> bool:
    return len(_tensor(value).shape) > 1


def _range(found: Mapping[str, float]) -> str:
    if not found:
        return "no layer multiplies by these tensors, so DARE's q is taken"
    low, high = min(found, key=lambda name: found[name]), max(found, key=lambda name: found[name])
    middle = median(found.values())
    return f"q from {found[low]:.3g} ({low}) to {found[high]:.3g} ({high}), median {middle:.3g}"
