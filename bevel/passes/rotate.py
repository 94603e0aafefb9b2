"""Turn channels, so that no few of them stand out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, UsageError
from bevel.ir.coupling import Freedom
from bevel.ir.groups import Analysis, Group, analyse
from bevel.ir.interpose import interpose
from bevel.ir.mixing import keeping_mean
from bevel.ir.symmetry import Motion
from bevel.ir.transform import Move, check, fold, move
from bevel.passes.base import SAMPLES, Context, Doc, Outcome, Pass, Preserving, Promise, Range
from bevel.passes.choice import choose, left_out
from bevel.passes.fitting.layers import layers
from bevel.passes.patterns import matches
from bevel.passes.rotation.covariance import covariances, principal
from bevel.passes.rotation.orthogonal import hadamard, mean_first, uniform

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rotate(Pass):
    """Turn channels, so that no few of them stand out: what quantizes blocks then loses less.

    What it does: multiplies weights by orthogonal matrices wherever what lies between them passes a rotation: residual
    streams of pre-norm transformers, values and outputs of attention, queries and keys where nothing tells their
    entries apart, the inside of low-rank pairs. Gains of norms are folded into the weights that follow; in front of
    LayerNormalization, which takes the mean off, only rotations are used that keep the mean. No node is added.

    `hadamard` spreads every entry evenly, `random` does so on average, `klt` turns to the principal axes of what layers
    read and then spreads these evenly: it needs inputs, and evens out variances where Hadamard evens out maxima.

    `online` names weights, by pattern, in front of which a product with the matrix is left in the graph, for what
    cannot be folded: the hidden layer of a feed-forward network behind its activation; a head that shares its weight
    with the embedding, behind the last norm. Each costs a product at run time.

    Promise: Preserving.

    Example: rotate{kind=hadamard online=*.down_proj.weight}

    Source: Ashkboos et al. 2024, QuaRot; Xu et al. 2025, MambaQuant (the Karhunen-Loeve transform before Hadamard's).
    Rotations that keep the mean, in place of folding the centring into weights, are ours.
    """

    name: ClassVar[str] = "rotate"
    promise: ClassVar[Promise] = Preserving()

    kind: Annotated[Literal["hadamard", "random", "klt"], Doc("which rotations")] = "hadamard"
    online: Annotated[tuple[str, ...], Doc("patterns of weights that get a product in front of them")] = ()
    only: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to turn; everything that can if empty")] = ()
    skip: Annotated[tuple[str, ...], Doc("patterns of groups or tensors to leave alone")] = ()
    samples: Annotated[int, Range(1), Doc("inputs to find principal axes from: rows of the first axis")] = SAMPLES

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Choose a matrix for each motion, fold gains, and turn."""
        products = self._interpose(model)
        analysis = analyse(model)
        groups = choose(analysis, Freedom.ROTATE, self.only, self.skip)
        turning, refused = _possible(groups)
        gains = {gain for _, motion in turning for gain in motion.folds}
        fold(analysis, turning)
        spreads = self._covariances(analysis, groups, replace(context, samples=self.samples))
        random = np.random.default_rng(context.seed)
        folded = [(group, replace(motion, folds=())) for group, motion in turning]
        moves = [
            Move(group, motion, self._matrix(group.size, spreads.get(group), motion.keeps_mean, random))
            for group, motion in folded
        ]
        move(analysis, moves)
        turned = {group for group, _ in turning}
        notes = (
            f"{len(turned)} of {len(analysis.groups)} groups turned, {len(gains)} gains folded",
            *([f"{products} products are left in the graph, each of them costs time"] if products else []),
            *([] if self.kind != "klt" else _unread(turned, spreads)),
        )
        return Outcome(notes=(*notes, *refused, *left_out(analysis.groups, Freedom.ROTATE)))

    def _interpose(self, model: ir.Model) -> int:
        """Put products in front of the layers that are named, and return how many."""
        if not self.online:
            return 0
        named = [layer for layer in layers(model) if matches([layer.weight.name or ""], self.online)]
        if not named:
            raise UsageError(f"no weight of a layer matches {','.join(self.online)}", where="online")
        sizes = {layer.node: layer.sizes[layer.in_axis] for layer in named}
        return len(interpose(model, [layer.node for layer in named], sizes))

    def _covariances(self, analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[Group, Array]:
        """Return how the entries of the groups that layers read vary together, where it is asked for."""
        return covariances(analysis, groups, context) if self.kind == "klt" else {}

    def _matrix(self, size: int, spread: Array | None, keeps_mean: bool, random: np.random.Generator) -> Array:
        if self.kind == "random":
            return keeping_mean(uniform(size, random)) if keeps_mean else uniform(size, random)
        if spread is not None:
            return np.asarray(hadamard(size, random) @ principal(spread, mean_first=keeps_mean))
        return hadamard(size, random) @ mean_first(size) if keeps_mean else hadamard(size, random)


def _possible(groups: Sequence[Group]) -> tuple[list[tuple[Group, Motion]], tuple[str, ...]]:
    """Return the motions that turn some matrix and whose gains can be folded, and why others cannot."""
    turning, refused = [], []
    for group, motion in _motions(groups):
        try:
            check(Move(group, motion, np.eye(group.size)))
        except EditRefused as error:
            refused.append(f"left alone: {error}".splitlines()[0])
        else:
            turning.append((group, motion))
    return turning, tuple(refused)


def _motions(groups: Sequence[Group]) -> Iterator[tuple[Group, Motion]]:
    for group in groups:
        for motion in group.motions(Freedom.ROTATE):
            if any(len(each.value.shape or ()) > 1 for each in motion.initializers):
                yield group, motion


def _unread(turned: set[Group], read: Mapping[Group, Array]) -> list[str]:
    """Say of how many groups no layer reads the entries, so that they have no principal axes."""
    rest = [group.name for group in turned if group not in read]
    return [f"{len(rest)} groups that no layer reads are turned by Hadamard matrices alone"] if rest else []
