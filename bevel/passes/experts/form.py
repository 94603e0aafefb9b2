"""A layer as ONNX Runtime's operators for mixtures have it: an activation they know, and the weights around it.

They have the activation inside, and know few: which one a layer has is found by comparing numbers. A gated one has to
be silu(gate) * up, whose gates and ups stand side by side in one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import expit

from bevel.errors import EditRefused
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.mixture import Mixture

Array = np.ndarray[Any, Any]

MICROSOFT: Final = "com.microsoft"
# How near the layer's activation has to be to one the operator knows; the tanh form of GELU is this near the exact one.
NEAR: Final = 2e-3


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))))


ACTIVATIONS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * expit(x),
    "gelu": _gelu,
}
# What the gate may be multiplied by before: GELU written out divides by the root of two.
FACTORS: Final = (1.0, 2**0.5)


@dataclass(frozen=True, eq=False)
class Form:
    """A layer as the operator has it: its activation, `[entries, channels]` and `[entries]` of gate and up."""

    activation: str
    gate: tuple[Array, Array]
    up: tuple[Array, Array] | None

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """What tells the operators the activation."""
        if self.up is None:
            return {"activation_type": self.activation}
        return {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}

    def first(self, mixture: Mixture) -> tuple[Array, Array]:
        """Return the first product's weights `[experts, entries, channels]` and constants `[experts, entries]`."""
        parts = mixture.partition.routed
        weight, bias = self.gate
        if self.up is None:
            return np.stack([weight[part] for part in parts]), np.stack([bias[part] for part in parts])
        both = [np.stack([weight[part], self.up[0][part]], axis=1).reshape(-1, weight.shape[1]) for part in parts]
        added = [np.stack([bias[part], self.up[1][part]], axis=1).ravel() for part in parts]
        return np.stack(both), np.stack(added)


def form_of(evidence: Evidence) -> Form:
    """Return a layer as the operator has it; raises `EditRefused` where it has no such layer."""
    layer = evidence.layer
    values = [layer.gate] if layer.up is None else [layer.gate, layer.up]
    found = dict(zip(values, evidence.run(evidence.parts.between(layer.input, values), evidence.rows), strict=True))
    bent = evidence.hidden if layer.up is None else evidence.bent
    gate, activation, factor = found[layer.gate], "", 1.0
    for name, function in ACTIVATIONS.items():
        for each in FACTORS:
            if _near(function(gate * each), bent):
                activation, factor = name, each
    gated = layer.up is not None
    if not activation or (gated and (activation != "silu" or not _near(bent * found[values[1]], evidence.hidden))):
        raise EditRefused(
            "MoE and QMoE have no such activation",
            where=f"group {layer.name!r}",
            remedy="they have relu, silu and gelu, and silu(gate) * up; others take emit=blocks",
        )
    if layer.channels[0] != layer.channels[1]:
        raise EditRefused(
            f"MoE and QMoE give as many channels as they read, not {layer.channels[1]} of {layer.channels[0]}",
            where=f"group {layer.name!r}",
            remedy="take emit=blocks or emit=gather",
        )
    weight, bias = evidence.linear(layer.gate)
    up = None if layer.up is None else evidence.linear(layer.up)
    return Form(activation, (weight * factor, bias * factor), up)


def _near(found: Array, wanted: Array) -> bool:
    return bool(np.abs(found - wanted).max() <= NEAR * np.abs(wanted).max())
