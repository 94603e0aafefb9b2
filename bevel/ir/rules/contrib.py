"""Operators that ONNX Runtime's optimizers fuse: products, activations, normalisations, embeddings."""

from __future__ import annotations

from bevel.ir.action import MULTIPLIED, ROOT_MEAN_SQUARE
from bevel.ir.axes import ONE, Axis
from bevel.ir.coupling import Coupling, Freedom, rule
from bevel.ir.rules.contraction import conv, conv_transpose, gemm
from bevel.ir.rules.elementwise import broadcasting, dropout, pointwise
from bevel.ir.rules.fixed import MICROSOFT, pin
from bevel.ir.rules.indexing import BY_VALUE
from bevel.ir.rules.layout import pad
from bevel.ir.rules.normalization import STATISTICS, layer_normalization
from bevel.ir.site import POSITIONS, Opaque, Site

_ADDRESSED = "it is addressed by value"

# Operators that read as those of ai.onnx do.
rule("SimplifiedLayerNormalization", acts=ROOT_MEAN_SQUARE)(layer_normalization)
rule("FusedGemm", domain=MICROSOFT)(gemm)
rule("Gelu", "QuickGelu", domain=MICROSOFT)(pointwise)
rule("BiasGelu", "FastGelu", "BiasAdd", domain=MICROSOFT)(broadcasting)
rule("Pad", domain=MICROSOFT)(pad)

pin(
    *("Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Upsample"),
    *("ReorderInput", "ReorderOutput"),
    why="ONNX Runtime saved it in the blocks of one processor: start from the model that it was given",
    domain="com.microsoft.nchwc",
)


@rule("FusedMatMul", "TransposeMatMul", domain=MICROSOFT, acts=MULTIPLIED)
@rule("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul(site: Site) -> Coupling:
    """State a matrix product whose operands may be transposed, also across their batch axes."""
    rows, columns = len(site.axes(0)) > 1, len(site.axes(1)) > 1
    if site.node.op_type == "FusedMatMulActivation" and site.text("activation") == "Softmax":
        raise Opaque("it normalises its result")
    left = _operand(site, "A", "i", "k") if rows else "k"
    right = _operand(site, "B", "k", "j") if columns else "k"
    output = f"{'... ' if rows or columns else ''}{'i ' if rows else ''}{'j' if columns else ''}"
    return Coupling(f"{left}, {right} -> {output}", sums="k")


def _operand(site: Site, letter: str, row: str, column: str) -> str:
    """Write an operand: with its batch axes transposed, rows come before them."""
    if site.integer(f"trans{letter}"):
        row, column = column, row
    return f"{row} ... {column}" if site.integer(f"transBatch{letter}") else f"... {row} {column}"


@rule("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(site: Site) -> Coupling:
    """State a matrix product with a bias and an activation."""
    return Coupling("... k, k n, n -> ... n", sums="k")


@rule("FusedConv", domain=MICROSOFT)
def fused_conv(site: Site) -> Coupling:
    """State a convolution with an addend of the size of its result, and an activation."""
    plain = conv(site)
    assert plain is not None
    operands, result = plain.equation.split("->")
    return Coupling(f"{operands}, n (g o) * -> {result}", plain.sizes, plain.sums, states=plain.states)


@rule("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def nhwc_conv(site: Site) -> Coupling:
    """State a convolution whose channels come last, while its weight holds them first."""
    return Coupling(
        "n * (g i), (g o) i *, (g o), n * (g o) -> n * (g o)",
        sizes={"g": site.integer("group", 1)},
        sums="i",
        states={"group": "g"},
    )


@rule("NhwcMaxPool", domain=MICROSOFT)
def nhwc_pool(site: Site) -> Coupling:
    """Reduce windows of positions, channels last."""
    return Coupling("n * c -> n * c")


@rule("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def conv_transpose_with_pads(site: Site) -> Coupling:
    """State a transposed convolution whose padding is an operand."""
    plain = conv_transpose(site)
    assert plain is not None
    operands, result = plain.equation.split("->")
    x, weight, bias = operands.split(",")
    return Coupling(f"{x}, {weight}, ?, {bias} -> {result}", plain.sizes, plain.sums, states=plain.states)


@rule("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(site: Site) -> Coupling:
    """Multiply one half of the entries with the activation of the other."""
    return Coupling("... (c + c), (c + c) -> ... c")


@rule("BiasDropout", domain=MICROSOFT)
def bias_dropout(site: Site) -> None:
    """Add a bias and a residual that broadcast; outputs and mask have the input's axes."""
    axes = site.broadcast(site.axes(0), *(site.axes(index) for index in (1, 2) if site.has(index)))
    site.set(0, axes)
    site.set(1, axes)


rule("BitmaskDropout", domain=MICROSOFT)(dropout)


@rule("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(site: Site) -> None:
    """Add a bias that broadcasts, and normalise over all axes from one on."""
    axes, bias = site.axes(0), site.axes(1)
    if len(axes) != len(bias):
        raise Opaque("its bias has another rank than its input")
    joined = site.broadcast(axes, bias)
    site.keep(joined[site.position(site.integer("axis", 1), len(axes)) :], Freedom.PERMUTE, STATISTICS)
    site.set(0, joined)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(site: Site) -> None:
    """Add a residual and a bias, and normalise over the last axis; the sum is an output too."""
    axes = site.broadcast(site.axes(0), site.axes(1))
    for index in range(2, site.inputs):
        if site.has(index):
            site.broadcast(axes[-1:], site.axes(index))
    site.keep(axes[-1], Freedom.PERMUTE, STATISTICS)
    statistics = (*axes[:-1], ONE)
    for index, output in enumerate((axes, statistics, statistics, axes)):
        site.set(index, output)


@rule("GroupNorm", domain=MICROSOFT)
def group_norm(site: Site) -> Coupling:
    """Normalise each group of channels over the group and its positions."""
    words = _channels(site)
    return Coupling(
        f"{words}, (g c), (g c) -> {words}",
        sizes={"g": site.integer("groups")},
        statistics=("c", "h", "w"),
        states={"groups": "g"},
    )


@rule("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(site: Site) -> Coupling:
    """Add a residual and a bias, and normalise each group of channels."""
    words, rank = _channels(site), len(site.axes(3))
    unit = rank == 4 and site.axes(3)[1].size == 1 and site.axes(3)[2].size == 1
    skip = "n (g c)" if rank == 2 else "n 1 1 (g c)" if unit else words
    return Coupling(
        f"{words}, (g c), (g c), {skip}, (g c) -> {words}, {words}",
        sizes={"g": site.integer("groups")},
        statistics=("c", "h", "w"),
        states={"groups": "g"},
    )


def _channels(site: Site) -> str:
    return "n h w (g c)" if site.integer("channels_last", 1) else "n (g c) h w"


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(site: Site) -> None:
    """Add up rows of tables, and normalise over the embedding."""
    ids = site.axes(0)
    batch, places = ids
    width = _embedding_width(site)
    for index in (1, 7, 8):
        if site.has(index):
            site.broadcast(ids, site.axes(index))
    _normalised_embedding(site, batch, places, width)


def _embedding_width(site: Site) -> Axis:
    """State that all tables, the gain and the offset have one width; rows of tables are addressed by value."""
    width = site.axes(2)[1]
    for index in (2, 3, 4):
        if site.has(index):
            site.equate(site.axes(index)[1], width)
            site.fix(site.axes(index)[0], BY_VALUE)
    for index in (5, 6):
        site.equate(site.axes(index)[0], width)
    return width


def _normalised_embedding(site: Site, batch: Axis, places: Axis, width: Axis) -> None:
    site.fix(places, POSITIONS)
    site.keep(width, Freedom.PERMUTE, STATISTICS)
    embedding = (batch, places, width)
    for index, output in enumerate((embedding, (batch,), embedding)):
        site.set(index, output)


@rule("QEmbedLayerNormalization", domain=MICROSOFT)
def quantized_embed_layer_normalization(site: Site) -> None:
    """State the same with tables, gain and offset quantized by one scale each."""
    ids = site.axes(0)
    width = _embedding_width(site)
    for index in (1, 7):
        if site.has(index):
            site.broadcast(ids, site.axes(index))
    _normalised_embedding(site, ids[0], ids[1], width)


@rule("CropAndResize", domain=MICROSOFT)
def crop_and_resize(site: Site) -> Coupling:
    """Sample crops, each of one image that is addressed by value."""
    return Coupling("_ c _ _, m _, m, ? -> m c _ _")


@rule("Inverse", domain=MICROSOFT)
def inverse(site: Site) -> Coupling:
    """Invert matrices, whose rows are pivoted in the order in which they come."""
    return Coupling("... _ _ -> ... _ _")


@rule("NGramRepeatBlock", domain=MICROSOFT)
def ngram_repeat_block(site: Site) -> Coupling:
    """Rule out tokens, which are addressed by value."""
    return Coupling("b _, b _ -> b _")


@rule("ComplexMul", "ComplexMulConj", domain=MICROSOFT)
def complex_product(site: Site) -> None:
    """Multiply pairs of real and imaginary parts."""
    axes = site.broadcast(site.axes(0), site.axes(1))
    site.fix(axes[-1:], "it holds real and imaginary parts")
    site.set(0, axes)


@rule("CDist", domain=MICROSOFT)
def pairwise_distance(site: Site) -> Coupling:
    """Return the distance of every row of one operand to every row of the other."""
    return Coupling("m k, n k -> m n")


@rule("TorchEmbedding", domain=MICROSOFT)
def torch_embedding(site: Site) -> None:
    """Take rows of a table by value."""
    table = site.axes(0)
    site.fix(table[0], BY_VALUE)
    site.set(0, (*site.axes(1), table[1]))


@rule("ExpandDims", domain=MICROSOFT)
def expand_dims(site: Site) -> None:
    """Insert an axis of size one."""
    axes = list(site.axes(0))
    axes.insert(site.position(site.required_integers(1)[0], len(axes) + 1), ONE)
    site.set(0, axes)


@rule("IsAllFinite", domain=MICROSOFT)
def is_all_finite(site: Site) -> None:
    """Say whether every entry of every operand is finite."""
    for index in range(site.inputs):
        site.keep(site.axes(index), Freedom.PERMUTE, "its entries are counted")
    site.set(0, ())


@rule("CausalConvWithState", domain=MICROSOFT)
def causal_conv(site: Site) -> Coupling:
    """State a depthwise convolution over time with the state carried along."""
    if site.integer("state_window") or site.integer("channels_last") or site.integer("ndim", 1) != 1:
        raise Opaque("its state has a layout of its own")
    return Coupling("n c _, c 1 _, c, n c _ -> n c _, n c _")
