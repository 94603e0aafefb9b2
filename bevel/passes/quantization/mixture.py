"""Which of several formats each weight gets: the least damage to the model's outputs for so many bytes.

The damage of a format is the relative squared error of the layer's output, from the second moments of what it reads,
times how much the outputs of the model feel an error of this layer. That factor is measured: each weight alone is put
in its coarsest format, and the model is run.

Source: Zhao et al. 2024, MixDQ (a sensitivity for each layer, then an integer program).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.passes.allocation.menu import Menu
from bevel.passes.allocation.programming import knapsack
from bevel.passes.base import Context
from bevel.passes.fitting.layers import Layer, hold
from bevel.passes.fitting.moments import moments
from bevel.passes.outputs import COMPARED, Outputs
from bevel.passes.quantization.forms import Found
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]
Choice: TypeAlias = Mapping[str, str]
"""The format of each weight, by name; a weight that is not there stays in floats."""

# How often the bytes are halved between what breaks a limit and what holds it: to a hundredth of what can be saved.
HALVINGS: Final = 7


@dataclass(frozen=True, eq=False)
class Offer:
    """A weight: the bytes it takes in each of the formats that it can have, and what quantizes its matrix to one."""

    target: Target
    nbytes: Mapping[str, int]
    quantize: Callable[[str, Array], Found]

    @cached_property
    def names(self) -> list[str]:
        """The formats, the largest first."""
        return sorted(self.nbytes, key=lambda name: -self.nbytes[name])


@dataclass(frozen=True)
class Mixture:
    """What can be chosen: a menu for each weight, floats first, then formats by falling size."""

    offers: Sequence[Offer]
    menus: Sequence[Menu]

    @property
    def most(self) -> float:
        """The bytes saved with the least format everywhere."""
        return float(sum(menu.saved.max(initial=0) for menu in self.menus))

    def saved(self, choice: Choice) -> float:
        """Return the bytes that a choice saves."""
        taken = [each for each in self.offers if each.target.name in choice]
        return float(sum(each.target.tensor.nbytes - each.nbytes[choice[each.target.name]] for each in taken))

    def saving(self, required: float) -> Choice:
        """Return the choice of least damage that saves so many bytes, or as many as can be."""
        picks = knapsack(self.menus, min(required, self.most))
        pairs = zip(self.offers, picks, strict=True)
        return {offer.target.name: offer.names[pick - 1] for offer, pick in pairs if pick}

    def at(self, bits: float | None) -> Choice:
        """Return the choice of least damage with so many bits an element in the mean; the fewest bytes if none."""
        if bits is None:
            return self.saving(self.most)
        return self.saving(sum(each.target.tensor.nbytes - bits / 8 * each.target.tensor.size for each in self.offers))


def mixture(model: ir.Model, offers: Sequence[Offer], feelings: Sequence[float], context: Context) -> Mixture:
    """Return what can be chosen, with the damage of each format; `feelings` weigh the errors of weights."""
    errors = _errors(model, offers, context)
    menus = []
    for offer, feeling in zip(offers, feelings, strict=True):
        saved = [offer.target.tensor.nbytes - offer.nbytes[name] for name in offer.names]
        damage = [error * feeling for error in errors[offer]]
        menus.append(Menu(np.arange(len(saved) + 1), np.array([0.0, *saved]), np.array([0.0, *damage])))
    return Mixture(offers, menus)


def within(mixed: Mixture, bits: float | None, error: Callable[[Choice], float], limit: float) -> Choice:
    """Return the choice that saves the most bytes, no more than so many bits ask for, with an error below a limit."""
    choice = mixed.at(bits)
    if error(choice) <= limit:
        return choice
    low, high, best = 0.0, mixed.saved(choice), dict[str, str]()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        choice = mixed.saving(middle)
        if choice and error(choice) <= limit:
            low, best = middle, dict(choice)
        else:
            high = middle
    return best


def summary(choice: Choice, offers: Sequence[Offer]) -> Iterator[str]:
    """Say how many weights got which format, and how many bits an element that makes."""
    counts = Counter(choice.get(offer.target.name, "floats") for offer in offers)
    sizes = [offer.nbytes.get(choice.get(offer.target.name, ""), offer.target.tensor.nbytes) for offer in offers]
    bits = sum(sizes) * 8 / sum(offer.target.tensor.size for offer in offers)
    yield f"{', '.join(f'{count} in {name}' for name, count in counts.most_common())}: {bits:.3g} bits an element"


def feelings(outputs: Outputs, offers: Sequence[Offer], context: Context) -> list[float]:
    """Return the squared error of the model's outputs for each squared relative error of a weight."""
    found = []
    for place, offer in enumerate(offers):
        context.progress("sensitivity", place, len(offers))
        with offer.target.reading() as matrix:
            quantized = offer.quantize(offer.names[-1], matrix)
            own = _relative(matrix, quantized.decode())

        def swap(clone: ir.Model, offer: Offer = offer, quantized: Found = quantized) -> None:
            hold(clone.graph.initializers[offer.target.name], quantized.decode().reshape(offer.target.shape))

        found.append(outputs.error(swap, COMPARED) ** 2 / own if own else 0.0)
    context.progress("sensitivity", len(offers), len(offers))
    return found


def _errors(model: ir.Model, offers: Sequence[Offer], context: Context) -> dict[Offer, list[float]]:
    """Return the relative squared error that each format makes: of the layer's output, or of a table."""
    readers = {offer.target.layer: offer for offer in offers if offer.target.layer is not None}
    found = {offer: _of_formats(offer, None) for offer in offers if offer.target.layer is None}
    for layer, moment in moments(model, list(readers), context):
        known = moment.finite and moment.count
        found[readers[layer]] = _of_formats(readers[layer], moment.second.astype(np.float32) if known else None)
    return found


def _of_formats(offer: Offer, second: Array | None) -> list[float]:
    with offer.target.reading() as matrix:
        return [
            _error(offer.target.layer, matrix, offer.quantize(name, matrix).decode(), second) for name in offer.names
        ]


def _error(layer: Layer | None, matrix: Array, decoded: Array, second: Array | None) -> float:
    """Return the relative squared error of a layer's output, or, without moments, of the weight."""
    if layer is None or second is None:
        return _relative(matrix, decoded)
    weights, lost = (layer.matrices(each.reshape(layer.sizes)) for each in (matrix, matrix - decoded))
    energy, noise = (float(np.sum((each @ second) * each)) for each in (weights, lost))
    return noise / energy if energy > 0 else 0.0


def _relative(matrix: Array, decoded: Array) -> float:
    energy = float(np.vdot(matrix, matrix))
    return float(np.square(matrix - decoded).sum()) / energy if energy else 0.0
