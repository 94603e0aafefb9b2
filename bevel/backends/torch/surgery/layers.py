"""What the tensors of PyTorch's own layers say about the attributes that repeat their sizes.

Most layers need one line, tensor by tensor which attribute each axis is:

    nn.Linear: {"weight": "out_features in_features", "bias": "out_features"}

An attribute of which two tensors say different things means that not all of the layer was changed: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from bevel.backends.torch.surgery.attention import NarrowMultiheadAttention
from bevel.backends.torch.surgery.journal import Journal
from bevel.errors import EditRefused
from bevel.ir.plan_file import PlannedTensor


class Claim(NamedTuple):
    """What a tensor says an attribute should be."""

    attribute: str
    value: Any
    tensor: str


Planned: TypeAlias = Mapping[str, PlannedTensor]
Layer: TypeAlias = Callable[[Any, Planned], Iterator[Claim]]

EQUATIONS: Final[Mapping[type[nn.Module], Mapping[str, str]]] = {
    nn.Linear: {"weight": "out_features in_features", "bias": "out_features"},
    nn.Bilinear: {"weight": "out_features in1_features in2_features", "bias": "out_features"},
    _NormBase: dict.fromkeys(("weight", "bias", "running_mean", "running_var"), "num_features"),
    nn.PReLU: {"weight": "num_parameters"},
}


def _group_norm(layer: nn.GroupNorm, planned: Planned) -> Iterator[Claim]:
    for name, tensor in _own(layer):
        yield Claim("num_channels", tensor.shape[0], name)
        yield Claim("num_groups", _blocks(planned.get(name), layer.num_groups), name)


def _layer_norm(layer: nn.LayerNorm | nn.RMSNorm, planned: Planned) -> Iterator[Claim]:
    for name, tensor in _own(layer):
        yield Claim("normalized_shape", tuple(tensor.shape), name)


def _convolution(layer: _ConvNd, planned: Planned) -> Iterator[Claim]:
    groups = _blocks(planned.get("weight"), layer.groups)
    outer, inner = ("in_channels", "out_channels") if layer.transposed else ("out_channels", "in_channels")
    yield Claim("groups", groups, "weight")
    yield Claim(outer, layer.weight.shape[0], "weight")
    yield Claim(inner, layer.weight.shape[1] * groups, "weight")
    if layer.bias is not None:
        yield Claim("out_channels", layer.bias.shape[0], "bias")


def _embedding(layer: nn.Embedding | nn.EmbeddingBag, planned: Planned) -> Iterator[Claim]:
    rows, width = layer.weight.shape
    yield Claim("num_embeddings", rows, "weight")
    yield Claim("embedding_dim", width, "weight")
    cuts = planned["weight"].cuts if "weight" in planned else {}
    if layer.padding_idx is not None and 0 in cuts:
        found = np.flatnonzero(cuts[0].kept == layer.padding_idx)
        yield Claim("padding_idx", int(found[0]) if len(found) else None, "weight")


# Blocks of rows in the weights of one step: input, forget, cell and output gates; reset, update and new.
GATES: Final = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}


def _recurrent(layer: nn.RNNBase, planned: Planned) -> Iterator[Claim]:
    gates = GATES.get(layer.mode, 1)
    for name, tensor in _own(layer):
        kind, level = name.split("_l")[0], name.removesuffix("_reverse").rpartition("_l")[2]
        if kind == "weight_hr":
            yield Claim("proj_size", tensor.shape[0], name)
            continue
        yield Claim("hidden_size", tensor.shape[0] // gates, name)
        if kind == "weight_ih" and level == "0":
            yield Claim("input_size", tensor.shape[1], name)


def _recurrent_cell(layer: nn.RNNCellBase, planned: Planned) -> Iterator[Claim]:
    for name, tensor in _own(layer):
        yield Claim("hidden_size", tensor.shape[0] // GATES.get(type(layer).__name__, 1), name)
    yield Claim("input_size", layer.weight_ih.shape[1], "weight_ih")


def _attention(layer: nn.MultiheadAttention, planned: Planned) -> Iterator[Claim]:
    query = "q_proj_weight" if layer.in_proj_weight is None else "in_proj_weight"
    width = getattr(layer, query).shape[1]
    thirds = 1 if layer.in_proj_weight is None else 3
    heads = _blocks(planned.get(query), thirds * layer.num_heads) // thirds
    rows = getattr(layer, query).shape[0]
    mixed = layer.out_proj.weight.shape[1]
    each = rows // heads if thirds == 1 else (rows - mixed) // 2 // heads
    yield Claim("embed_dim", width, query)
    yield Claim("kdim", width if thirds == 3 else layer.k_proj_weight.shape[1], query)
    yield Claim("vdim", width if thirds == 3 else layer.v_proj_weight.shape[1], query)
    yield Claim("num_heads", heads, query)
    if width != mixed or each * heads != width or each != layer.head_dim:
        yield Claim("scale", getattr(layer, "scale", layer.head_dim**-0.5), query)
    yield Claim("head_dim", each, query)


LAYERS: Final[Mapping[type[nn.Module], Layer]] = {
    _ConvNd: _convolution,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
    nn.MultiheadAttention: _attention,
}
# Layers of other packages, by the full name of their class.
FOREIGN: Final[Mapping[str, Mapping[str, str]]] = {
    "transformers.pytorch_utils.Conv1D": {"weight": "nx nf", "bias": "nf"},
}


def claims(layer: nn.Module, planned: Planned) -> list[Claim] | None:
    """Return what a layer's tensors say about its attributes; None for a module that is not in the table."""
    equations = FOREIGN.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
    for kind in type(layer).__mro__:
        if kind in LAYERS:
            return list(LAYERS[kind](layer, planned))
        equations = equations or EQUATIONS.get(kind)
        if equations is not None:
            return list(_equated(layer, equations))
    return None


def follow(layer: nn.Module, name: str, found: list[Claim], journal: Journal) -> None:
    """Set a layer's attributes to what its tensors say; raises `EditRefused` where they contradict each other."""
    said: dict[str, Claim] = {}
    for claim in found:
        first = said.setdefault(claim.attribute, claim)
        if first.value != claim.value:
            raise EditRefused(
                f"its {first.tensor} makes {first.attribute} {first.value}, its {claim.tensor} {claim.value}: only a "
                "part of the layer was changed",
                where=f"module {name!r} ({type(layer).__name__})",
                remedy="use bevel.to_torch; or, if a pass took one of them elsewhere, optimize without `fold`; "
                "if a hook computes one, as torch.nn.utils.weight_norm does, use torch.nn.utils.parametrizations; if "
                "directions or parts were cut differently, leave the layer out (skip=...)",
            )
    if "scale" in said and type(layer) is nn.MultiheadAttention:
        # The containers of PyTorch hand such a module's weights to a kernel that takes the usual widths for granted.
        journal.set(layer, "_qkv_same_embed_dim", False, name)
        journal.set(layer, "__class__", NarrowMultiheadAttention, name)
    for claim in said.values():
        if getattr(layer, claim.attribute, None) != claim.value:
            journal.set(layer, claim.attribute, claim.value, name)


def _own(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from layer.named_parameters(recurse=False)


def _equated(layer: nn.Module, equations: Mapping[str, str]) -> Iterator[Claim]:
    for name, axes in equations.items():
        tensor = getattr(layer, name, None)
        if tensor is not None:
            yield from (Claim(axis, size, name) for axis, size in zip(axes.split(), tensor.shape, strict=True))


def _blocks(tensor: PlannedTensor | None, blocks: int) -> int:
    """Return how many of so many equal blocks of a tensor's first axis are left."""
    if tensor is None or 0 not in tensor.cuts:
        return blocks
    cut = tensor.cuts[0]
    return len(np.unique(cut.kept // (cut.size // blocks)))
