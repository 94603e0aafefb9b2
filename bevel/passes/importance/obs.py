"""Score by what dropping an entry costs the layers that read it, once they have made up for it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from bevel.ir.groups import Analysis, Group
from bevel.passes.base import Context
from bevel.passes.fitting.elimination import Reader, eliminate
from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import moments
from bevel.passes.fitting.readers import Reads, readers
from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.fitting.shift import can_shift
from bevel.passes.importance import importance
from bevel.passes.importance.effects import effects

Array = np.ndarray[Any, Any]


# Bytes of inverse moments and weights up to which all that read a group are kept until its entries are put in order.
MOST_KEPT: Final = 2**30


@importance(aggregate="sum", normalize="none", allocation="slope", made_up="global")
def obs(analysis: Analysis, groups: Sequence[Group], context: Context) -> Mapping[str, np.ndarray]:
    """Score each entry by the error that the layers which read it are left with after a least-squares refit.

    Entries go one after the other, the cheapest first, and each is scored by what it adds when those before it are gone
    and the rest has made up for them: of two that are alike one is worth little, the other all. The error is relative
    to the energy of each layer's output, times what of such an error arrives at the model's outputs (measured on a few
    samples, `effects`), and added over the layers that read the entry; one that reads numbers which overflow says
    nothing. Where a layer can add a constant, what is dropped is replaced by its mean, so that only its variance
    counts. The refit is taken for granted: without one, wanda and flap do better. Scores of different groups are errors
    that add up, so entries go where least error comes of each cost saved (`allocation=slope`). Errors on made-up inputs
    tell less of that, unless these are text that the model samples, and one threshold for all groups, which weigh
    alike, does better (`global`). A group that no layer reads by itself (the channels that queries and keys are
    compared over) is left out; one whose layers hold more than a gigabyte in sum is scored entry by entry. Source:
    Hassibi and Stork 1992, Optimal Brain Surgeon, lifted to coupled groups; Kurtic et al. 2023, ZipLM, for the order
    (`bevel.passes.fitting.second_order`, `bevel.passes.fitting.elimination`).
    """
    reads = readers(analysis, groups)
    together = _small_enough(reads)
    waiting = Counter(group.name for parts in reads.values() for group, _ in parts)
    found: dict[str, list[Array]] = {}
    kept: dict[str, list[Reader]] = {}
    felt = effects(analysis.model, list(reads), context)
    for layer, moment in moments(analysis.model, list(reads), context):
        if moment.finite:
            for group, some in _read(layer, moment.orders(can_shift(layer)), reads[layer], felt[layer]):
                if group.name in together:
                    kept.setdefault(group.name, []).extend(some)
                else:
                    found.setdefault(group.name, []).append(np.sum([reader.scores() for reader in some], axis=0))
        del moment  # not beside what follows from it, nor beside that of the next layer
        waiting.subtract(group.name for group, _ in reads[layer])
        for name in [name for name in kept if not waiting[name]]:
            found[name] = [eliminate(kept.pop(name))]
    return {name: np.stack(parts) for name, parts in found.items()}


def _read(
    layer: Layer, orders: Sequence[SecondOrder], reads: Reads, effect: float
) -> Iterator[tuple[Group, list[Reader]]]:
    """Yield each group that a layer reads, with what its matrices know of it."""
    pairs = list(zip(layer.content(), orders, strict=True))
    energy = sum(float(np.vdot(w @ order.damped, w)) for w, order in pairs)
    scale = max(energy, np.finfo(np.float64).tiny) / effect
    for group, inputs in reads:
        yield group, [Reader(w, order.inverse, inputs, scale) for w, order in pairs]


def _small_enough(reads: Mapping[Layer, Reads]) -> set[str]:
    """Return the groups of which all that reads them can be kept at once."""
    sizes: dict[str, int] = {}
    for layer, groups in reads.items():
        out = layer.sizes[layer.out_axis]
        for group, inputs in groups:
            sizes[group.name] = sizes.get(group.name, 0) + layer.groups * inputs.size * (inputs.size + out) * 8
    return {name for name, size in sizes.items() if size <= MOST_KEPT}
