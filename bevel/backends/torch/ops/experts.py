"""Mixtures of experts: a router gives each token its best experts, whose results are weighed and added.

In eager mode each expert sees only the tokens that chose it; where a graph is traced, which must not depend on a
choice, every expert sees every token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.packed import BITS, unpack, zero_points
from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel

MICROSOFT: Final = "com.microsoft"
ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "relu": torch.relu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "identity": lambda x: x,
}
INTERLEAVED, END_TO_END = 1, 2

Layer = Callable[[Tensor, int], Tensor]
"""What a linear layer of one expert makes of tokens."""


@dataclass(frozen=True)
class Experts:
    """The layers of all experts and what is between them."""

    first: Layer
    second: Layer
    third: Layer | None
    activation: str
    alpha: float
    beta: float
    limit: float
    fusion: int

    def __call__(self, x: Tensor, expert: int) -> Tensor:
        """Return what an expert makes of tokens."""
        hidden = self.first(x, expert)
        other = None if self.third is None else self.third(x, expert)
        return self.second(self._activated(hidden, other), expert)

    def _activated(self, hidden: Tensor, other: Tensor | None) -> Tensor:
        if self.activation != "swiglu":
            active = ACTIVATIONS[self.activation](hidden)
            return active if other is None else active * other
        if self.fusion == INTERLEAVED:
            hidden, other = hidden[..., 0::2], hidden[..., 1::2]
        elif self.fusion == END_TO_END:
            hidden, other = hidden.chunk(2, -1)
        if other is None:
            raise UnsupportedModel("swiglu has no second operand", where="a mixture of experts")
        gate, linear = hidden.clamp(max=self.limit), other.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (linear + self.beta)


def _refused(attributes: Mapping[str, Any]) -> str:
    name = attributes.get("activation_type", "relu")
    if name not in (*ACTIVATIONS, "swiglu"):
        return f"its activation is {name}"
    return "its router is a sparse mixer" if attributes.get("use_sparse_mixer", 0) else ""


@lower("MoE", domain=MICROSOFT, refuses=_refused)
def mixture_of_experts(
    x: Tensor,
    router: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor,
    second_bias: Tensor | None = None,
    third: Tensor | None = None,
    third_bias: Tensor | None = None,
    *,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    activation_type: str = "relu",
    k: int = 1,
    normalize_routing_weights: int = 0,
    swiglu_fusion: int = 0,
    swiglu_limit: float = math.inf,
    use_sparse_mixer: int = 0,
) -> Tensor:
    """Send each token through its best experts; the router's scores become weights by softmax."""
    experts = Experts(
        _linear(first, first_bias),
        _linear(second, second_bias),
        None if third is None else _linear(third, third_bias),
        activation_type,
        activation_alpha,
        activation_beta,
        swiglu_limit,
        swiglu_fusion,
    )
    return mixed(x, experts, *chosen(router, None, k, normalize=bool(normalize_routing_weights)))


def _linear(weight: Tensor, bias: Tensor | None) -> Layer:
    return lambda x, expert: F.linear(x, weight[expert], None if bias is None else bias[expert])


def chosen(router: Tensor, weights: Tensor | None, k: int, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """Return the share of every expert in each token, and which experts a token has chosen."""
    shares = router.softmax(-1) if weights is None else weights
    best = router.topk(k, -1).indices
    kept = shares.gather(-1, best)
    if normalize:
        kept = kept / kept.sum(-1, keepdim=True)
    used = torch.zeros_like(router, dtype=torch.bool).scatter(-1, best, torch.ones_like(best, dtype=torch.bool))
    return torch.zeros_like(router).scatter(-1, best, kept), used


def mixed(x: Tensor, experts: Experts, shares: Tensor, used: Tensor) -> Tensor:
    """Add up what the experts make of each token, in their shares."""
    tokens = x.reshape(-1, x.shape[-1])
    total = torch.zeros_like(tokens)
    for expert in range(shares.shape[1]):
        share = shares[:, expert : expert + 1].to(x.dtype)
        if torch.compiler.is_compiling():
            total = total + torch.where(used[:, expert : expert + 1], share * experts(tokens, expert), 0)
        else:
            (rows,) = used[:, expert].nonzero(as_tuple=True)
            total = total.index_add(0, rows, share[rows] * experts(tokens[rows], expert))
    return total.reshape(x.shape)


def _refused_packed(attributes: Mapping[str, Any]) -> str:
    kind = attributes.get("quant_type", "int")
    if kind != "int":
        return f"its weights are of type {kind}"
    if attributes.get("weights_prepacked", -1) == 1:
        return "its weights are packed for one device"
    names = ("expert_weight_bits", "fc1_expert_weight_bits", "fc2_expert_weight_bits", "fc3_expert_weight_bits")
    widths = [attributes.get(name, 4) for name in names if attributes.get(name, 4) not in BITS]
    return f"its weights have {widths[0]} bits" if widths else _refused(attributes)


@lower("QMoE", domain=MICROSOFT, refuses=_refused_packed)
def quantized_mixture_of_experts(
    x: Tensor,
    router: Tensor,
    first: Tensor,
    first_scales: Tensor,
    first_bias: Tensor | None,
    second: Tensor,
    second_scales: Tensor,
    second_bias: Tensor | None = None,
    third: Tensor | None = None,
    third_scales: Tensor | None = None,
    third_bias: Tensor | None = None,
    first_zeros: Tensor | None = None,
    second_zeros: Tensor | None = None,
    third_zeros: Tensor | None = None,
    router_weights: Tensor | None = None,
    *,
    accuracy_level: int = 0,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    activation_type: str = "relu",
    block_size: int = 0,
    expert_weight_bits: int = 4,
    fc1_expert_weight_bits: int = 0,
    fc2_expert_weight_bits: int = 0,
    fc3_expert_weight_bits: int = 0,
    k: int = 1,
    normalize_routing_weights: int = 0,
    quant_type: str = "int",
    swiglu_fusion: int = 0,
    swiglu_limit: float = math.inf,
    use_sparse_mixer: int = 0,
    weights_prepacked: int = -1,
) -> Tensor:
    """Do the same with weights packed into bytes, restored for one expert at a time in the precision of the tokens."""
    bits = expert_weight_bits
    third_layer = None
    if third is not None and third_scales is not None:
        third_layer = _packed(third, third_scales, third_zeros, third_bias, fc3_expert_weight_bits or bits)
    experts = Experts(
        _packed(first, first_scales, first_zeros, first_bias, fc1_expert_weight_bits or bits),
        _packed(second, second_scales, second_zeros, second_bias, fc2_expert_weight_bits or bits),
        third_layer,
        activation_type,
        activation_alpha,
        activation_beta,
        swiglu_limit,
        swiglu_fusion,
    )
    # ONNX Runtime takes the softmax over the best experts alone here, whatever the attribute says.
    normalize = router_weights is None or bool(normalize_routing_weights)
    return mixed(x, experts, *chosen(router, router_weights, k, normalize=normalize))


def _packed(weight: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, bits: int) -> Layer:
    """Return a layer that restores the weight of an expert when it is called."""
    by_row = scales.dim() == 2  # zero points of one a row are packed across rows

    def layer(x: Tensor, expert: int) -> Tensor:
        entries, scale = unpack(weight[expert], bits).to(x.dtype), scales[expert].to(x.dtype)
        zero = zero_points(None if zeros is None else zeros[expert], scale, bits)
        shape = (entries.shape[0], -1, 1)
        blocks = entries.reshape(entries.shape[0], 1 if by_row else scale.shape[-1], -1)
        centred = blocks - (zero.reshape(shape) if isinstance(zero, Tensor) else zero)
        restored = (centred * scale.reshape(shape)).flatten(1)
        return F.linear(x, restored, None if bias is None else bias[expert])

    return layer
